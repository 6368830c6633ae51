"""Prompts as a causal language model reads them: chat templates, or plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..text.chat import plain_prompt

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""A text, or a conversation of `{role, content}` whose first message may be the system's."""


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool | None = None) -> list[int]:
    """A prompt's token ids as the model is to get them.

    A text is what a user says if `chat`, which by default is whether the tokenizer has a chat
    template; otherwise it is continued as it stands. Conversations follow the template. Where it
    has no system role, the system prompt comes before the first user message; without a template
    the conversation is plain text ("User: ...", "Assistant:"). Raises ValueError for a prompt
    without tokens.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(prompt, str):
        if not (bool(template) if chat is None else chat):
            return _not_empty(tokenizer(prompt)["input_ids"], prompt)
        prompt = [{"role": "user", "content": prompt}]
    system = "\n\n".join(m["content"] for m in prompt if m["role"] == "system")
    messages = [dict(m) for m in prompt if m["role"] != "system"]
    if not template:
        return _not_empty(tokenizer(plain_prompt(messages, system))["input_ids"], prompt)
    from jinja2.exceptions import TemplateError

    whole = [*([{"role": "system", "content": system}] if system else []), *messages]
    try:
        text = _rendered(tokenizer, whole)
    except TemplateError:
        if not system:
            raise
        text = _rendered(tokenizer, _without_system(messages, system))
    return _not_empty(tokenizer(text, add_special_tokens=False)["input_ids"], prompt)


def _not_empty(ids: Sequence[int], prompt: Prompt) -> list[int]:
    if not len(ids):
        raise ValueError(f"The prompt {prompt!r} has no tokens; give some text to go on from.")
    return list(ids)


def _rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    unfinished = messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not unfinished,
        continue_final_message=unfinished,
    )


def _without_system(messages: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    for place, message in enumerate(messages):
        if message["role"] == "user":
            merged = {**message, "content": f"{system}\n\n{message['content']}"}
            return [*messages[:place], merged, *messages[place + 1 :]]
    return [{"role": "user", "content": system}, *messages]
