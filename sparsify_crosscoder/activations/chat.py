"""Conversations: each model's own chat template, and where the messages lie in what it renders."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"
_ROLES = {"human": "user", "gpt": "assistant"}


def render_chat(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int, int]]]:
    """Render a conversation with the tokenizer's own chat template and find the messages in it.

    Returns the rendered string and one span (start, stop, position) per message:
    `rendered[start:stop]` is the message's stripped content, which starts at `position` of
    `plain_text(messages)`. A message that the template altered, dropped or moved before an earlier
    one has no span, nor has one without content.

    Raises ValueError if the tokenizer has no chat template, and jinja2's TemplateError where the
    template refuses the conversation.
    """
    check_chat_template(tokenizer)
    messages = normalize_messages(messages)
    if not messages:
        return "", []
    contents = [message["content"] for message in messages]
    rendered = _apply(messages, tokenizer)
    starts = _starts_by_marker(messages, tokenizer, rendered) or _starts_by_search(
        contents, rendered
    )
    spans, position = [], 0
    for content, start in zip(map(str.strip, contents), starts, strict=True):
        if content and start is not None:
            spans.append((start, start + len(content), position))
        position += len(content) + len(SEPARATOR)
    return rendered, spans


def plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages' stripped contents, joined by an empty line, without roles."""
    return SEPARATOR.join(message["content"].strip() for message in normalize_messages(messages))


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no chat "
            "template, so conversations cannot be shown to its model as such. Use "
            "`--chat_format plain` to read the messages' contents as plain text in every model."
        )


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages as role and content, from those keys or from ShareGPT's "from" and "value".

    Content given as a list of parts is reduced to its text parts, a missing one to "".
    Raises ValueError for a message with neither pair of keys.
    """
    return [_normalize_message(message) for message in messages]


def _normalize_message(message: Mapping[str, Any]) -> dict[str, str]:
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in message and content_key in message:
            role, content = message[role_key] or "user", message[content_key]
            break
    else:
        raise ValueError(
            'A message needs the keys "role" and "content" (or "from" and "value"); one has '
            f"{sorted(message)}."
        )
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content)
    return {"role": _ROLES.get(role, role), "content": content or ""}


def _apply(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert isinstance(rendered, str)
    return rendered


def _starts_by_marker(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, rendered: str
) -> list[int | None] | None:
    """Where each content starts, by the places that a second rendering gives to markers.

    A plain search would take a message "user" for the name of its role. None if the template does
    more than to wrap each message in a text that does not depend on it.
    """
    markers = [f"\ue000{number}\ue001" for number in range(len(messages))]
    template = _apply(
        [
            {"role": message["role"], "content": marker}
            for message, marker in zip(messages, markers, strict=True)
        ],
        tokenizer,
    )
    between: list[str] = []
    for marker in markers:
        before, found, template = template.partition(marker)
        if not found:
            return None
        between.append(before)
    if not rendered.startswith(between[0]):
        return None
    starts: list[int | None] = []
    position = len(between[0])
    for message, behind in zip(messages, [*between[1:], template], strict=True):
        original = message["content"]
        for content in (original, original.strip()):
            if rendered.startswith(content + behind, position):
                starts.append(position + len(content) - len(content.lstrip()))
                position += len(content) + len(behind)
                break
        else:
            return None
    return starts


def _starts_by_search(contents: list[str], rendered: str) -> list[int | None]:
    """Where each stripped content is first found behind the one before it, None where it is not."""
    starts: list[int | None] = []
    position = 0
    for content in map(str.strip, contents):
        start = rendered.find(content, position)
        starts.append(start if start >= 0 else None)
        if start >= 0:
            position = start + len(content)
    return starts
