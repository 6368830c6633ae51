"""delphi's prompts as requests to the Messages API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sparsify_crosscoder.hashing import hash_text

SAMPLING = ("temperature", "top_p", "top_k")
"""Arguments that `messages.create` of the SDK no longer has, and that some models refuse."""

_LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
_OWN_FIELDS = ("model", "messages", "system", "max_tokens", "stream")
_OVERHEAD = 32
"""More tokens than the API adds for a message's role and separators."""


class UnsupportedArgument(TypeError):
    """An argument of `generate` that this client cannot honour."""


@dataclass(frozen=True)
class Request:
    """One request to the Messages API, as it determines the answer."""

    model: str
    messages: tuple[dict[str, Any], ...]
    """User and assistant turns in the prompt's order, unchanged."""
    system: tuple[str, ...]
    """The prompt's system messages in order."""
    max_tokens: int
    extra: Mapping[str, Any]
    """Other fields of the body."""
    server: str | None = None
    """Address of the server, where models of one name may be several."""

    @cached_property
    def key(self) -> str:
        """SHA-256 in hexadecimal digits of all fields; prompt caching is no part of it."""
        fields = [self.model, self.messages, self.system, self.max_tokens, self.extra]
        fields += [] if self.server is None else [self.server]
        return hash_text(_canonical(fields))

    def body(self, cache_system: bool) -> dict[str, Any]:
        """The JSON body; `cache_system` marks the system prompt for the prompt cache."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": list(self.messages),
            **self.extra,
        }
        if self.system:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": s} for s in self.system]
            if cache_system:
                blocks[-1]["cache_control"] = {"type": "ephemeral"}
            body["system"] = blocks
        return body

    def held_to(self, schema: Mapping[str, Any]) -> Request | None:
        """This, for an answer that is a JSON object of this schema; None if it asks for another."""
        output = {**self.extra.get("output_config", {})}
        if "format" in output:
            return None
        output["format"] = {"type": "json_schema", "schema": dict(schema)}
        return replace(self, extra={**self.extra, "output_config": output})

    @property
    def estimated_tokens(self) -> int:
        """Tokens of the prompt by the rule of four characters each."""
        return -(-len(self._text) // 4)

    @property
    def most_tokens(self) -> int:
        """A bound on the prompt's tokens: no tokenizer makes more tokens than UTF-8 bytes."""
        parts = len(self.messages) + len(self.system) + 1
        return len(self._text.encode()) + _OVERHEAD * parts

    @cached_property
    def _text(self) -> str:
        contents = [message["content"] for message in self.messages]
        texts = [c if isinstance(c, str) else _canonical(c) for c in contents]
        extra = [_canonical(self.extra)] if self.extra else []
        return "".join([*self.system, *texts, *extra])


def build_request(
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    model: str,
    max_tokens: int,
    arguments: Mapping[str, Any] | None = None,
    send_sampling: bool = False,
    extra_body: Mapping[str, Any] | None = None,
) -> Request:
    """A prompt of delphi, a text or a list of `{role, content}`, as a request.

    `arguments` are the keyword arguments of `generate`: `max_tokens` replaces the default, `stop`
    or `stop_sequences` are sent, `temperature`, `top_p` and `top_k` are dropped unless
    `send_sampling`. Raises UnsupportedArgument for what cannot be honoured (log probabilities) or
    is not known, ValueError for a prompt that is not a conversation.
    """
    arguments = dict(arguments or {})
    extra = dict(extra_body or {})
    clash = [name for name in extra if name in _OWN_FIELDS]
    if clash:
        raise ValueError(f"extra_body may not set {clash}: the client sets these itself.")
    if any(arguments.pop(name, None) for name in _LOGPROBS):
        raise UnsupportedArgument(
            "The Messages API returns no log probabilities. Turn them off (log_prob=False of "
            "delphi's classifiers), or use a client that has them."
        )
    for name in SAMPLING:
        value = arguments.pop(name, None)
        if send_sampling and value is not None:
            extra[name] = value
    asked = arguments.pop("max_tokens", None)
    max_tokens = max_tokens if asked is None else asked
    for name in ("stop", "stop_sequences"):
        stop = arguments.pop(name, None)
        if stop:
            extra["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    if arguments:
        raise UnsupportedArgument(
            f"generate does not know {sorted(arguments)}. It takes max_tokens, stop_sequences and "
            f"{', '.join(SAMPLING)}; other fields of the API go into the client's extra_body."
        )
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(f"max_tokens must be a positive integer, not {max_tokens!r}.")
    messages, system = split_system(prompt)
    request = Request(model, tuple(messages), tuple(system), max_tokens, extra)
    try:
        request._text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The prompt is not valid Unicode (a lone surrogate, {error.object[error.start]!r}), "
            "so it cannot be sent. Decode its text with errors='replace'."
        ) from None
    return request


def split_system(
    prompt: str | Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """A prompt's user and assistant messages, and its system messages' texts, each in order.

    Raises ValueError for another role, for a message without content, and if nothing is left to
    answer.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages: list[dict[str, Any]] = []
    system: list[str] = []
    for place, message in enumerate(prompt):
        if not isinstance(message, Mapping) or "content" not in message:
            raise ValueError(f"Message {place} of the prompt has no `content`: {message!r:.80}")
        role, content = message.get("role"), message["content"]
        if role == "system":
            if not isinstance(content, str):
                raise ValueError(f"System message {place} of the prompt must be a text.")
            system += [content] if content else []
        elif role in ("user", "assistant"):
            messages.append({"role": role, "content": content})
        else:
            raise ValueError(
                f"Message {place} of the prompt has the role {role!r}; "
                "roles are system, user and assistant."
            )
    if not messages:
        raise ValueError("The prompt has no user message, so there is nothing to answer.")
    return messages, system


def _canonical(obj: Any) -> str:
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), default=dict)
