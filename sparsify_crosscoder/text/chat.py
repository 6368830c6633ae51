"""Conversations: each model's own chat template, and where the messages lie in what it renders."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .messages import REASONING, extras, normalize_messages, pieces
from .surviving import ANCHOR, surviving_parts
from .templates import render_template

Text = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation as messages with role and content."""

SEPARATOR = "\n\n"
Place = tuple[int, int]
Part = tuple[int, int, int]


def render_chat(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int, int]]]:
    """Render a conversation with the tokenizer's own chat template and find the messages in it.

    Returns the rendered string and spans (start, stop, position) of what was said:
    `rendered[start:stop]` is also in `plain_text(messages)`, at `position`. A message has one span
    of its stripped content, and none where the template dropped it or moved it before an earlier
    one; of a message that the template altered, those parts that can be told with certainty have
    spans (`surviving_parts`). What was said is the content of each message, and its reasoning, if
    that is kept apart, before it. Templates are told that it is `TEMPLATE_DATE`.

    Raises ValueError if the tokenizer has no chat template or one that does not end, and jinja2's
    TemplateError where the template refuses the conversation.
    """
    check_chat_template(tokenizer)
    messages = normalize_messages(messages)
    if not messages:
        return "", []
    rendered = _apply(messages, tokenizer)
    said = pieces(messages)
    texts = [text for _, _, text in said]
    parts = _parts_by_marker(messages, tokenizer, rendered)
    parts = _parts_by_search(texts, rendered) if parts is None else parts
    spans, position = [], 0
    for text, found in zip(texts, parts, strict=True):
        spans += [(start, stop, position + place) for start, stop, place in found]
        position += len(text.strip()) + len(SEPARATOR)
    return rendered, spans


def plain_text(text: Text) -> str:
    """A text as it is, or what was said in messages, stripped, joined by an empty line."""
    if isinstance(text, str):
        return text
    said = pieces(normalize_messages(text))
    return SEPARATOR.join(text.strip() for _, _, text in said)


def plain_prompt(messages: Sequence[Mapping[str, Any]], system: str = "") -> str:
    """A conversation for a model without a chat template to go on from.

    Plain text: the system's message, then "User: ..." and "Assistant: ..." with empty lines
    between, and "Assistant:" at the end unless an assistant has begun.
    """
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    last = [] if messages[-1]["role"] == "assistant" else ["Assistant:"]
    return SEPARATOR.join([*([system] if system else []), *turns, *last])


def render_prompt(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """A conversation as `render_chat` renders it, up to where the template lets a model answer.

    Raises as `render_chat`.
    """
    check_chat_template(tokenizer)
    return _apply(normalize_messages(messages), tokenizer, add_generation_prompt=True)


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no chat "
            "template, so conversations cannot be shown to its model as such. Use "
            "`--chat_format plain` to read the messages' contents as plain text in every model."
        )


def _apply(
    messages: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    instead: Mapping[tuple[int, str], str] | None = None,
    **options: Any,
) -> str:
    """The conversation in the template, with other texts `instead` of some of what was said."""
    instead = instead or {}
    written, about = [], {}
    for number, message in enumerate(messages):
        more = extras(message)
        more.pop("parts", None)
        about |= more.pop("conversation", {})
        content = instead.get((number, message["role"]), message["content"])
        reasoning = instead.get((number, "reasoning"))
        more |= {key: reasoning for key in REASONING if reasoning is not None and key in more}
        written.append({"role": message["role"], "content": content, **more})
    return render_template(written, tokenizer, **about, **options)


def _parts_by_marker(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, rendered: str
) -> list[list[Part]] | None:
    """The parts of each piece, by the places that a second rendering gives to markers.

    A plain search would take a message "user" for the name of its role. None if the template does
    more than to wrap what it makes of each message in a text that does not depend on it.
    """
    said = pieces(messages)
    markers = {
        (number, role): f"\ue000{place}\ue001"
        for place, (number, role, text) in enumerate(said)
        if text.strip()
    }
    rest = _apply(messages, tokenizer, markers)
    between: list[str] = []
    written: list[int] = []
    for place, (number, role, _) in enumerate(said):
        before, found, behind = rest.partition(markers.get((number, role), "\ue001"))
        if found:
            between.append(before)
            written.append(place)
            rest = behind
    between.append(rest)
    texts = [said[place][2] for place in written]
    regions = _regions(texts, between, rendered)
    if regions is None:
        return None
    parts: list[list[Part]] = [[] for _ in said]
    for place, text, (start, stop) in zip(written, texts, regions, strict=True):
        parts[place] = _parts_of(text, rendered, start, stop)
    return parts


def _regions(texts: list[str], between: list[str], rendered: str) -> list[Place] | None:
    """Where the template has put each text, whole or altered, given what it writes between."""
    if not rendered.startswith(between[0]):
        return None
    regions = []
    position = len(between[0])
    for number, text in enumerate(texts):
        behind = between[number + 1]
        for whole in (text, text.strip()):
            if rendered.startswith(whole + behind, position):
                stop = position + len(whole)
                break
        else:
            if number == len(texts) - 1:
                ends = rendered.endswith(behind)
                stop = len(rendered) - len(behind) if ends else -1
            else:
                stop = rendered.find(behind, position) if behind else -1
            if stop < position:
                return None
        regions.append((position, stop))
        position = stop + len(behind)
    return regions


def _parts_of(text: str, rendered: str, start: int, stop: int) -> list[Part]:
    content = text.strip()
    here = rendered[start:stop]
    if here.strip() == content:
        begin = start + len(here) - len(here.lstrip())
        return [(begin, begin + len(content), 0)]
    return [(start + a, start + b, at) for a, b, at in surviving_parts(content, here, exact=True)]


def _parts_by_search(texts: list[str], rendered: str) -> list[list[Part]]:
    """The parts of each piece, searched for behind those of the piece before it.

    Short pieces that the template writes elsewhere as well are not believed to be found.
    """
    contents = [text.strip() for text in texts]
    parts: list[list[Part]] = [[] for _ in contents]
    position = 0
    for number, content in enumerate(contents):
        start = rendered.find(content, position) if content else -1
        if start >= 0 and (len(content) >= ANCHOR or _is_said(content, contents, rendered)):
            position = start + len(content)
            parts[number] = [(start, position, 0)]
    position = 0
    for number, content in enumerate(contents):
        if content and not parts[number]:
            later = (found[0][0] for found in parts[number + 1 :] if found)
            gap = rendered[position : next(later, len(rendered))]
            parts[number] = [
                (position + a, position + b, at)
                for a, b, at in surviving_parts(content, gap, exact=False)
            ]
        if parts[number]:
            position = parts[number][-1][1]
    return parts


def _is_said(content: str, contents: list[str], rendered: str) -> bool:
    """Whether a content is not found more often in the rendered string than it was said."""
    return rendered.count(content) <= sum(other.count(content) for other in contents)
