"""One Message Batch on its way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from .anthropic_client import AnthropicClient
from .api_client import RequestFailed
from .batch_files import BatchFile
from .ledger import BudgetExceeded
from .messages import MalformedResponse, read_message
from .records import RequestRecord
from .requests import Request
from .retries import read_failure

_HOPELESS = (
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
)
"""Errors of single requests in a batch that another submission would only meet again."""


class _Unanswered(NamedTuple):
    """Why a request of a batch got no answer."""

    reason: str
    hopeless: bool = False
    """Whether another submission could not help."""


_GONE = _Unanswered("the batch or its results are no longer on the server")


@dataclass
class WaitingRequest:
    """A request that someone waits for."""

    request: Request
    size: int
    """Bytes in a batch."""
    future: asyncio.Future[RequestRecord]
    attempts: int = 0
    uncertain: float = 0.0


@dataclass(frozen=True)
class BatchConfig:
    """How requests go by batches."""

    max_requests: int = 100_000
    max_bytes: int = 256_000_000
    idle: float = 5.0
    """Seconds without a new request before the queue is submitted."""

    poll_first: float = 15.0
    """Seconds between questions for a batch's status, growing by half."""

    poll_longest: float = 300.0
    resubmissions: int = 2
    """How often a request that errored on the server or expired is submitted again."""

    def __post_init__(self):
        if self.max_requests < 1 or self.max_bytes < 1:
            raise ValueError("max_requests and max_bytes must be at least 1.")


class Queue(Protocol):
    """What a batch asks of the queue that it comes from."""

    client: AnthropicClient
    folder: Path
    """Of the files of batches."""

    config: BatchConfig
    api: Any
    submitting: asyncio.Lock
    look_on_disk: bool

    def enqueue(self, waiting: WaitingRequest) -> None: ...

    def start(self, batch: Batch) -> None: ...

    def end(self, batch: Batch) -> None: ...


class Batch:
    """One batch on its way: reserved, submitted, polled, collected, handed out."""

    def __init__(
        self, queue: Queue, waiting: dict[str, WaitingRequest], file: BatchFile | None = None
    ):
        self.queue = queue
        self.client = queue.client
        self.timeout = queue.client.config.timeout
        self.waiting = waiting
        path = queue.folder / f"{uuid4().hex}.json"
        self.file = file or BatchFile(path, self.client.model, list(waiting))
        self.resumed = file is not None
        self.held: list[float] = []
        """Dollars reserved."""
        self.unanswered: dict[str, _Unanswered] = {}
        """By request key."""

    @property
    def keys(self) -> list[str]:
        return self.file.keys

    async def run(self) -> None:
        gone = False
        try:
            if not self.resumed:
                await self._reserve()
            while not await self._answered():
                pass
            gone = _GONE in self.unanswered.values()
            self.file.put_aside() if gone else self.file.remove()
            self.queue.end(self)
            self._hand_out()
        except RequestFailed as error:  # the file stays, and the next request looks for it
            self._give_up()
            for waiting in self.waiting.values():
                self._fail(waiting, error.reason, error.status)
        except (Exception, BudgetExceeded) as error:
            self._give_up()
            for waiting in self.waiting.values():
                if not waiting.future.done():
                    waiting.future.set_exception(error)
        except BaseException:
            self._give_up()
            for waiting in self.waiting.values():
                waiting.future.cancel()
            raise
        finally:
            for amount in self.held:
                self.client.ledger.release(amount, uncertain=gone)

    def _give_up(self) -> None:
        self.queue.end(self)
        self.queue.look_on_disk = True

    async def _reserve(self) -> None:
        """Set dollars aside; requests that do not fit until this batch has ended are a next one."""
        ledger = self.client.ledger
        rest: dict[str, WaitingRequest] = {}
        for key, waiting in self.waiting.items():
            worst = ledger.worst_case(waiting.request, batch=True)
            if not self.held:
                await ledger.reserve(worst)
            elif rest or not ledger.try_reserve(worst):
                rest[key] = waiting
                continue
            self.held.append(worst)
        if rest:
            self.waiting = {k: w for k, w in self.waiting.items() if k not in rest}
            self.file.keys = list(self.waiting)
            self.queue.start(Batch(self.queue, rest))
        self.file.reserved = sum(self.held)

    async def _answered(self) -> bool:
        """Whether every outcome is known; False if the batch on the server was not this one."""
        file = self.file
        if file.id is None and file.saved:  # a submission that may or may not have arrived
            file.id = await self._look_for()
            file.adopted = file.id is not None
            if self.resumed and not file.adopted:
                return True
        if file.id is None:
            await self._submit()
        try:
            kept = await self._poll()
            found = kept and await self._collect()
        except RequestFailed as error:
            if error.status != 404:
                raise
            kept = found = False
        if not kept:
            self.unanswered = dict.fromkeys(self.keys, _GONE)
        if found or not kept or not file.adopted:
            return True
        file.rejected.append(str(file.id))
        file.id, file.adopted = None, False
        file.save()
        return False

    async def _submit(self) -> None:
        requests: list[Any] = []
        for key, waiting in self.waiting.items():
            waiting.attempts += 1
            body = waiting.request.body(self.client.config.cache_system)
            requests.append({"custom_id": key, "params": body})
        file, received = self.file, False

        async def attempt() -> str:
            nonlocal received
            if received:
                id = await self._look_for()
                if id is not None:
                    file.adopted = True
                    return id
            try:
                created = await self.queue.api.create(requests=requests, timeout=self.timeout)
                return _batch_id(created)
            except Exception as error:
                received = received or read_failure(error, str, self.client.package).received
                raise

        async with self.queue.submitting:
            if not file.saved:
                file.after = await self.client._call(self._newest)
                file.save()
            try:
                file.id = await self.client._call(attempt)
            except RequestFailed:
                if not received:
                    file.remove()
                raise
            file.save()

    async def _newest(self) -> str | None:
        page = await self.queue.api.list(limit=1, timeout=self.timeout)
        return _batch_id(page.data[0]) if page.data else None

    async def _look_for(self) -> str | None:
        """The first batch of this size made since the submission that no other file knows."""
        known = {file.id for file in BatchFile.load_all(self.queue.folder)}
        known |= {*self.file.rejected, None}

        async def attempt() -> str | None:
            found = None
            async for batch in self.queue.api.list(limit=100, timeout=self.timeout):
                if batch.id == self.file.after:
                    break
                count = sum(v for v in vars(batch.request_counts).values() if isinstance(v, int))
                if count == len(self.keys) and batch.id not in known:
                    found = batch.id
            return found

        return await self.client._call(attempt)

    async def _poll(self) -> bool:
        """Wait for the batch to end; whether the server still has its results."""
        delay = self.queue.config.poll_first

        async def attempt() -> Any:
            batch = await self.queue.api.retrieve(str(self.file.id), timeout=self.timeout)
            _batch_id(batch)
            return batch

        while (batch := await self.client._call(attempt)).processing_status != "ended":
            await self.client.config.retries.sleep(delay)
            delay = min(1.5 * delay, self.queue.config.poll_longest)
        return batch.results_url is not None

    async def _collect(self) -> bool:
        """Store the answers; whether any result belongs to this batch's requests."""
        keys, seen = set(self.keys), set()
        store, ledger = self.client.store, self.client.ledger

        async def attempt() -> None:
            stream = await self.queue.api.results(str(self.file.id), timeout=self.timeout)
            try:
                async for item in stream:
                    key = getattr(item, "custom_id", None)
                    if key not in keys:
                        continue
                    seen.add(key)
                    try:
                        record = self._read_result(key, item.result)
                    except MalformedResponse as error:
                        record = None
                        self.unanswered[key] = _Unanswered(f"malformed result: {error}")
                    if record is not None and store.get(key) is None:
                        store.put(record, sync=False)
                        ledger.add(record)
            finally:
                await stream.close()

        await self.client._call(attempt)
        store.sync()
        for key in keys - seen:
            self.unanswered[key] = _Unanswered("the batch's results do not mention it")
        return bool(seen)

    def _read_result(self, key: str, result: Any) -> RequestRecord | None:
        kind = getattr(result, "type", None)
        if kind == "succeeded":
            text, stop_reason, usage = read_message(result.message)
            waiting = self.waiting.get(key)
            return RequestRecord(
                key,
                self.file.model,
                text,
                stop_reason,
                usage,
                attempts=max(1, waiting.attempts) if waiting else 1,
                batch=True,
                uncertain_cost=waiting.uncertain if waiting else 0.0,
            )
        if kind == "errored":
            error = getattr(getattr(result, "error", None), "error", None)
            type_ = getattr(error, "type", "error")
            reason = f"errored: {type_}: {getattr(error, 'message', '')}"
            self.unanswered[key] = _Unanswered(reason, hopeless=type_ in _HOPELESS)
        elif kind == "expired":
            self.unanswered[key] = _Unanswered("expired before it was processed")
        elif kind == "canceled":
            self.unanswered[key] = _Unanswered("the batch was canceled", hopeless=True)
        else:
            raise MalformedResponse(f"a batch result of type {kind!r}")
        return None

    def _hand_out(self) -> None:
        for key, waiting in self.waiting.items():
            record = self.client.store.get(key)
            why = self.unanswered.get(key)
            if record is not None:
                if not waiting.future.done():
                    waiting.future.set_result(record)
            elif why is None or not waiting.attempts:
                self.queue.enqueue(waiting)  # it waited for a batch that was submitted for another
            elif why.hopeless or waiting.attempts > self.queue.config.resubmissions:
                self._fail(waiting, why.reason, None)
            else:
                if why == _GONE:
                    waiting.uncertain += self.client.ledger.worst_case(waiting.request, True)
                self.queue.enqueue(waiting)

    def _fail(self, waiting: WaitingRequest, reason: str, status: int | None) -> None:
        record = RequestRecord(
            waiting.request.key,
            self.client.model,
            attempts=max(1, waiting.attempts),
            error=self.client._redact(reason)[:500],
            status=status,
            batch=True,
            uncertain_cost=waiting.uncertain,
        )
        self.client.ledger.add(record)
        self.client.store.put(record)
        if not waiting.future.done():
            waiting.future.set_result(record)


def _batch_id(batch: Any) -> str:
    if getattr(batch, "type", None) != "message_batch" or not isinstance(batch.id, str):
        raise MalformedResponse(f"not a message batch: {str(batch)[:200]!r}")
    return batch.id
