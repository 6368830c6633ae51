"""What clients of paid APIs share: answers that are kept, a budget, and another attempt."""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast
from weakref import WeakKeyDictionary

from ..delphi import compat

# isort: split
from delphi.clients.client import Client, Response

from .ledger import Estimate, Ledger
from .messages import Answer
from .records import RequestRecord
from .requests import Request, build_request
from .results import ResultStore
from .retries import Failure, RetryPolicy, read_failure, redactor

Prompt = str | Sequence[Mapping[str, Any]]
T = TypeVar("T")


class MissingAPIKey(ValueError):
    """There is no key for the API in the environment."""


class RequestFailed(RuntimeError):
    """A request got no answer; delphi's scorers leave its examples unanswered."""

    def __init__(self, record: RequestRecord):
        self.record = record
        self.status = record.status
        self.attempts = record.attempts
        self.reason = record.error or ""
        times = "once" if record.attempts == 1 else f"{record.attempts} times"
        super().__init__(f"{record.model} gave no answer, asked {times}: {self.reason}")


@dataclass
class RecordedResponse(Response):
    """delphi's Response with the record of its request (stop reason, tokens, attempts)."""

    record: RequestRecord = field(kw_only=True)
    structured: bool = field(default=False, kw_only=True)
    """Whether the answer was held to a schema."""


@dataclass
class _Loop:
    """What belongs to one event loop."""

    sdk: Any
    slots: asyncio.Semaphore
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ApiConfig:
    """How a client asks an API."""

    max_tokens: int = 4096
    """Longest answer, thinking included, unless delphi asks for another."""

    concurrency: int = 8
    """Requests in flight at a time."""

    retries: RetryPolicy = field(default_factory=RetryPolicy)
    """Attempts and delays. Rate limits (`retry-after` is kept to), overloads, errors of the server,
    timeouts, cut connections and malformed responses are tried again."""

    timeout: float = 600.0
    """Seconds for one attempt."""

    cache_system: bool = True
    """Mark the system prompt for the prompt cache."""

    send_sampling: bool = False
    """Send `temperature`, `top_p` and `top_k`, which are dropped otherwise, since newer models
    refuse them."""

    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the request's body, such as `{"thinking": {...}}`."""

    base_url: str | None = None
    """Of another server with the same API."""

    structured: bool = False
    """Hold answers to the schema that a question has, where the model can be held to one. What was
    answered without is not asked again."""

    def __post_init__(self):
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {self.concurrency}.")


class ApiClient(Client):
    """A model behind an API, for delphi's explainers and scorers.

    A subclass says how its SDK connects (`_connect`), asks (`_ask`) and words a request that is
    held to a schema (`_held`). The key comes from the environment and is written nowhere; without
    one MissingAPIKey is raised here, before anything is sent. The client can be made outside an
    event loop and used in several.

    - model: the API's name of it.
    - store: a folder (or ResultStore) for answers: a request that it has an answer to is not sent
      again, in this run or a later one. Equal requests have one answer, also within a run and
      without a folder.
    - ledger: counts tokens and dollars; give one to several clients for one budget. Without it
      the client makes one from `prices` (see `load_prices`) and `max_cost` (dollars, for the
      store's whole life); BudgetExceeded stops the run before a request that could exceed it.
    - config: everything else; `settings` are fields of it that are different.
    """

    provider: ClassVar[str]
    """As options and reports call it."""

    package: ClassVar[str]
    """The SDK's."""

    batch = False
    """Whether requests go by Message Batches."""

    def __init__(
        self,
        model: str,
        *,
        store: str | Path | ResultStore | None = None,
        ledger: Ledger | None = None,
        prices: Mapping[str, Any] | str | Path | None = None,
        max_cost: float | None = None,
        config: ApiConfig | None = None,
        **settings: Any,
    ):
        super().__init__(model)
        self.config = replace(config or ApiConfig(), **settings)
        if ledger is not None and (prices is not None or max_cost is not None):
            raise ValueError("prices and max_cost belong to the ledger: give them to Ledger().")
        self.ledger = Ledger(prices, max_cost) if ledger is None else ledger
        self.ledger.require_price(model)
        self.request("")  # refuses an extra_body or max_tokens that every request would trip over
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()
        self._first_sdk: Any = self._connect()
        self.store = ResultStore.open(store)
        place = str(self.store.path or id(self.store))
        self.ledger.include(place, self.store.earlier, self.store.earlier_uncertain)
        self._refuses_schemas = False

    @property
    def concurrency(self) -> int:
        """Requests in flight at a time."""
        return self.config.concurrency

    @property
    def structured(self) -> bool:
        """Whether `generate` takes a schema."""
        return self.config.structured

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, store={str(self.store.path)!r})"

    def request(self, prompt: Prompt, **kwargs: Any) -> Request:
        """The request that `generate` would make; raises UnsupportedArgument and ValueError."""
        return build_request(
            prompt,
            model=self.model,
            max_tokens=self.config.max_tokens,
            arguments=kwargs,
            send_sampling=self.config.send_sampling,
            extra_body=self.config.extra_body,
        )

    async def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, prompt: Prompt, *, schema: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> RecordedResponse:
        """Answer a text or a list of `{role, content}`, from the store or from the API.

        With a JSON `schema` and `structured`, the answer is such an object, unless the response
        says otherwise: there is an answer without it already, or the model refuses schemas.

        Refusals and answers cut at `max_tokens` come back with the text there is; see
        `record.stop_reason`. Takes `max_tokens`, `stop_sequences` and the sampling arguments.
        Raises RequestFailed after the last attempt, BudgetExceeded before a request that the
        budget has no room for, UnsupportedArgument (log probabilities) and ValueError (prompts).
        """
        request = self.request(prompt, **kwargs)
        held = None
        if schema is not None and self.structured and not self._refuses_schemas:
            held = None if self.has(request) else self._held(request, schema)
        record = await self.answer(held or request)
        if held is not None and _refused(record):
            held, refusal = None, record.error
            record = await self.answer(request)
            if not record.failed:
                self._note_refusal(str(refusal))
        if record.failed:
            raise RequestFailed(record)
        return RecordedResponse(text=record.text, record=record, structured=held is not None)

    def has(self, request: Request) -> bool:
        """Whether a request is answered, or paid for, already."""
        return self.store.get(request.key) is not None

    def _note_refusal(self, reason: str) -> None:
        """Say once that the model's answers are read as text."""
        if not self._refuses_schemas:
            self._refuses_schemas = True
            print(
                f"{self.model} cannot be held to a schema, so its answers are read as text "
                f"({reason}).",
                file=sys.stderr,
            )

    async def answer_all(self, prompts: Sequence[Prompt], **kwargs: Any) -> list[RequestRecord]:
        """Outcomes of many prompts in their order, failures included."""
        requests = [self.request(prompt, **kwargs) for prompt in prompts]
        return list(await asyncio.gather(*[self.answer(request) for request in requests]))

    async def answer(self, request: Request) -> RequestRecord:
        """The outcome of a request; equal requests at once are sent once. Does not raise for a
        failure of the request itself: see `failed`."""
        key = request.key
        while True:
            record = self.store.get(key)
            if record is not None:
                self.ledger.add_stored()
                return record
            other = self.store.claim(key)
            if other is not None:
                outcome = await asyncio.shield(asyncio.wrap_future(other))
                if outcome is not None:
                    return outcome
                continue
            outcome = None
            try:
                outcome = await self._send(request)
                return outcome
            finally:
                self.store.release(key, outcome)

    def estimate(self, prompts: Sequence[Prompt], **kwargs: Any) -> Estimate:
        """What prompts may cost, by four characters a token and answers of `max_tokens`.

        Sends nothing. The tokens of scripts other than Latin are underestimated: see
        `estimate_by_counting`.
        """
        requests, stored = self._to_send(prompts, kwargs)
        return self.ledger.estimate(requests, stored, self.batch)

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        if loop is not None:
            await loop.sdk.close()

    def _to_send(
        self, prompts: Sequence[Prompt], kwargs: dict[str, Any]
    ) -> tuple[list[Request], int]:
        unique = {r.key: r for r in (self.request(prompt, **kwargs) for prompt in prompts)}
        missing = [r for key, r in unique.items() if self.store.get(key) is None]
        return missing, len(unique) - len(missing)

    def _load_sdk(self, who_needs: str) -> Any:
        """The SDK's package; raises ImportError with the line that installs it."""
        try:
            with compat.without_mounted_save():
                for late in ("anyio._backends._asyncio", "anyio.streams.tls"):
                    import_module(late)  # else the first request would
                return import_module(self.package)
        except ImportError:
            raise ImportError(
                f"{who_needs} the {self.package} package: "
                f"`pip install 'sparsify-crosscoder[{self.package}]'`."
            ) from None

    @abstractmethod
    def _connect(self) -> Any:
        """The SDK's asynchronous client; raises ImportError and MissingAPIKey."""

    @abstractmethod
    async def _ask(self, sdk: Any, request: Request) -> Answer:
        """One attempt; raises what the SDK raises, and MalformedResponse."""

    @abstractmethod
    def _held(self, request: Request, schema: Mapping[str, Any]) -> Request | None:
        """The request for an answer of a schema; None if it asks for another form already."""

    @abstractmethod
    def _secrets(self, sdk: Any) -> list[str | None]:
        """What must not get into any record."""

    def _loop(self) -> _Loop:
        running = asyncio.get_running_loop()
        if running not in self._loops:
            sdk, self._first_sdk = self._first_sdk or self._connect(), None
            self._loops[running] = _Loop(sdk, asyncio.Semaphore(self.config.concurrency))
        return self._loops[running]

    async def _send(self, request: Request) -> RequestRecord:
        loop = self._loop()
        async with loop.slots:
            record = await self._attempts(loop.sdk, request)
            self.ledger.add(record)
            self.store.put(record)
        return record

    async def _attempts(self, sdk: Any, request: Request) -> RequestRecord:
        worst = self.ledger.worst_case(request)
        uncertain = 0.0

        async def attempt() -> Answer:
            nonlocal uncertain
            await self.ledger.reserve(worst)
            billed = True  # also if cancelled: the answer is lost but paid for
            try:
                answer = await self._ask(sdk, request)
                billed = False
            except Exception as error:
                billed = read_failure(error, str, self.package).billed
                raise
            finally:
                self.ledger.release(worst, uncertain=billed)
                uncertain += worst if billed else 0.0
            return answer

        record = RequestRecord(request.key, self.model)
        try:
            answer, failure, attempts = await self._try(attempt)
        except BaseException as stop:
            if uncertain:
                error = f"stopped by {type(stop).__name__}"
                self.store.put(replace(record, error=error, uncertain_cost=uncertain))
            raise
        record = replace(record, attempts=attempts, uncertain_cost=uncertain)
        if failure is not None:
            return replace(record, error=failure.reason, status=failure.status)
        text, stop_reason, usage = cast(Answer, answer)
        return replace(record, text=text, stop_reason=stop_reason, usage=usage)

    async def _try(
        self, attempt: Callable[[], Awaitable[T]]
    ) -> tuple[T | None, Failure | None, int]:
        """A result or the last attempt's failure, and the number of attempts."""
        number = 0
        while True:
            number += 1
            try:
                return await attempt(), None, number
            except Exception as error:
                failure = read_failure(error, self._redact, self.package)
            if not failure.retryable or number >= self.config.retries.attempts:
                return None, failure, number
            await self.config.retries.sleep(self.config.retries.delay(number, failure.retry_after))

    async def _call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """A result, or RequestFailed: for calls that answer no prompt."""
        result, failure, attempts = await self._try(attempt)
        if failure is not None:
            record = RequestRecord("", self.model, attempts=attempts, error=failure.reason)
            raise RequestFailed(replace(record, status=failure.status))
        return cast(T, result)

    def _redact(self, text: str) -> str:
        return redactor(self._secrets(self._loop().sdk))(text)


def _refused(record: RequestRecord) -> bool:
    """Whether the server would not have a request as it is; nothing is paid for that."""
    return record.failed and (record.status == 400 or "invalid_request_error" in str(record.error))
