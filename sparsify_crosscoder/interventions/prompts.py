"""Prompts as a causal language model reads them: chat templates, left padding, end tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
        return _not_empty(tokenizer(_plain(messages, system))["input_ids"], prompt)
    from jinja2.exceptions import TemplateError

    whole = [*([{"role": "system", "content": system}] if system else []), *messages]
    try:
        text = _rendered(tokenizer, whole)
    except TemplateError:
        if not system:
            raise
        text = _rendered(tokenizer, _without_system(messages, system))
    return _not_empty(tokenizer(text, add_special_tokens=False)["input_ids"], prompt)


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each `[N, longest prompt]`, every prompt at the right."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens with which a model ends an answer."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    ends = set(ends) if isinstance(ends, list | tuple) else {ends}
    return {id for id in (*ends, tokenizer.eos_token_id) if id is not None}


def pad_token(tokenizer: Any, ends: set[int]) -> int:
    """A token to pad with; masked, so any will do."""
    return next((i for i in (tokenizer.pad_token_id, *sorted(ends)) if i is not None), 0)


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


def _plain(messages: list[dict[str, Any]], system: str) -> str:
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    last = [] if messages[-1]["role"] == "assistant" else ["Assistant:"]
    return "\n\n".join([*([system] if system else []), *turns, *last])


def _without_system(messages: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    for place, message in enumerate(messages):
        if message["role"] == "user":
            merged = {**message, "content": f"{system}\n\n{message['content']}"}
            return [*messages[:place], merged, *messages[place + 1 :]]
    return [{"role": "user", "content": system}, *messages]
