"""delphi's client on the Chat Completions API: OpenAI's, and that of servers which speak it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .api_client import ApiClient, MissingAPIKey, Prompt
from .messages import Answer, MalformedResponse, whole
from .records import Usage
from .requests import Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# As the Messages API calls them, which is what those who read answers know.
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_HERE = ("localhost", "127.0.0.1", "::1")
_SCHEMA_NAME = "answer"


class OpenAIClient(ApiClient):
    """A model through the Chat Completions API, for delphi's explainers and scorers.

    OpenAI's own without `base_url`, else that of another server which speaks it: OpenRouter, vLLM,
    llama.cpp. The key comes from OPENAI_API_KEY; a server on this machine needs none. Prompts are
    those of the AnthropicClient to the byte. The arguments are those of ApiClient; in its `config`
    `cache_system` means nothing here.
    """

    provider = "openai"
    package = "openai"

    def _connect(self) -> AsyncOpenAI:
        openai = self._load_sdk("This judge needs")
        key = os.environ.get("OPENAI_API_KEY")
        if not key and not is_here(self.config.base_url):
            raise MissingAPIKey(
                "There is no API key: set the environment variable OPENAI_API_KEY to that of "
                f"{self.config.base_url or 'OpenAI'}."
            )
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.config.base_url, max_retries=0
        )

    def request(self, prompt: Prompt, **kwargs: Any) -> Request:
        return replace(super().request(prompt, **kwargs), server=self.config.base_url)

    async def _ask(self, sdk: AsyncOpenAI, request: Request) -> Answer:
        extra = dict(request.extra)
        if stop := extra.pop("stop_sequences", None):
            extra["stop"] = stop
        # OpenAI's newer models refuse the older name, other servers may not know the newer.
        limit = "max_completion_tokens" if self.config.base_url is None else "max_tokens"
        body = {"stream": False, limit: request.max_tokens, **extra}
        answer = await sdk.chat.completions.create(
            model=request.model,
            messages=conversation(request),  # pyright: ignore[reportArgumentType]
            extra_body=body,
            timeout=self.config.timeout,
        )
        return read_completion(answer, counted=self.ledger.max_cost is not None)

    def _held(self, request: Request, schema: Mapping[str, Any]) -> Request | None:
        if "response_format" in request.extra:
            return None
        form = {"name": _SCHEMA_NAME, "strict": True, "schema": dict(schema)}
        extra = {"response_format": {"type": "json_schema", "json_schema": form}}
        return replace(request, extra={**request.extra, **extra})

    def _secrets(self, sdk: AsyncOpenAI) -> list[str | None]:
        return [None if sdk.api_key == "none" else sdk.api_key]


def is_here(base_url: str | None) -> bool:
    """Whether a server is on this machine, by its address."""
    return base_url is not None and urlsplit(base_url).hostname in _HERE


def conversation(request: Request) -> list[dict[str, Any]]:
    """A request's system texts and turns, as the API takes them."""
    return [*({"role": "system", "content": text} for text in request.system), *request.messages]


def read_completion(completion: Any, *, counted: bool) -> Answer:
    """What a ChatCompletion says; raises MalformedResponse if it is none.

    Without numbers of tokens, too, where these are `counted` against a budget.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, Sequence) or not choices or isinstance(choices, str):
        raise MalformedResponse(f"no completion: {str(completion)[:200]!r}")
    message, reason = choices[0].message, choices[0].finish_reason
    if message is None or not isinstance(reason, str):
        raise MalformedResponse("a completion without a message or a reason why it ends")
    refusal = getattr(message, "refusal", None)
    text = message.content if message.content is not None else refusal
    if not isinstance(text, str | None):
        raise MalformedResponse("a message that is no text")
    stop_reason = "refusal" if refusal else _STOP_REASONS.get(reason, reason)
    return text or "", stop_reason, _usage(completion.usage, counted)


def _usage(usage: Any, counted: bool) -> Usage:
    if usage is None and not counted:
        return Usage()
    cached = whole(getattr(usage, "prompt_tokens_details", None), "cached_tokens", 0)
    prompt = whole(usage, "prompt_tokens")
    if cached > prompt:
        raise MalformedResponse(f"{cached} cached tokens of a prompt of {prompt}")
    return Usage(input=prompt - cached, output=whole(usage, "completion_tokens"), cache_read=cached)
