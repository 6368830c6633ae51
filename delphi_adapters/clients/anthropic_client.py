"""delphi's client on Anthropic's Messages API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .api_client import ApiClient, MissingAPIKey, Prompt
from .ledger import Estimate
from .messages import Answer, read_message, whole
from .records import Usage
from .requests import Request

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class AnthropicClient(ApiClient):
    """A Claude model through the Messages API, for delphi's explainers and scorers.

    The key comes from ANTHROPIC_API_KEY, by way of the `anthropic` package. The arguments are those
    of ApiClient.
    """

    provider = "anthropic"
    package = "anthropic"

    async def estimate_by_counting(self, prompts: Sequence[Prompt], **kwargs: Any) -> Estimate:
        """As `estimate`, with prompts counted by the API's free count_tokens endpoint."""
        requests, stored = self._to_send(prompts, kwargs)
        loop = self._loop()

        async def count(request: Request) -> int:
            body = {k: v for k, v in request.body(False).items() if k != "max_tokens"}
            named = {k: body.pop(k) for k in ("model", "messages", "system") if k in body}
            extra = {k: v for k, v in body.items() if k in ("thinking", "tools", "tool_choice")}
            async with loop.slots:
                result = await self._call(
                    lambda: loop.sdk.messages.count_tokens(
                        **named, extra_body=extra, timeout=self.config.timeout
                    )
                )
            return whole(result, "input_tokens")

        counts = await asyncio.gather(*[count(request) for request in requests])
        sizes = [
            (request, Usage(input=n, output=request.max_tokens))
            for request, n in zip(requests, counts, strict=True)
        ]
        return self.ledger.estimate_usage(sizes, stored, self.batch)

    def _connect(self) -> AsyncAnthropic:
        anthropic = self._load_sdk("Claude models need")
        missing = "There is no API key: set the environment variable ANTHROPIC_API_KEY."
        try:
            sdk = anthropic.AsyncAnthropic(base_url=self.config.base_url, max_retries=0)
        except anthropic.CredentialsError as error:
            raise MissingAPIKey(f"{missing} {error}") from None
        if sdk.api_key is None and sdk.auth_token is None and sdk.credentials is None:
            raise MissingAPIKey(missing)
        return sdk

    async def _ask(self, sdk: AsyncAnthropic, request: Request) -> Answer:
        body = request.body(self.config.cache_system)
        named = {k: body.pop(k) for k in ("model", "max_tokens", "messages", "system") if k in body}
        return read_message(
            await sdk.messages.create(**named, extra_body=body, timeout=self.config.timeout)
        )

    def _held(self, request: Request, schema: Mapping[str, Any]) -> Request | None:
        return request.held_to(schema)

    def _secrets(self, sdk: AsyncAnthropic) -> list[str | None]:
        return [sdk.api_key, sdk.auth_token]
