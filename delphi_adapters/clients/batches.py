"""delphi's client on Anthropic's Message Batches API: half price, answers within a day."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.files import remove_leftovers

from .anthropic_client import AnthropicClient
from .batch import Batch, BatchConfig, WaitingRequest
from .batch_files import BatchFile
from .records import RequestRecord
from .requests import Request
from .results import ResultStore

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class BatchAnthropicClient(AnthropicClient):
    """An AnthropicClient whose requests go by Message Batches.

    `generate` queues its request. The queue is submitted when it holds a batch's worth
    (`max_requests`, `max_bytes`) or when nothing was asked for `idle` seconds; the answer is there
    when its batch has ended. delphi's scorers ask for one prompt of a latent after another, so
    each of these rounds is a batch: give `Pipeline.run` a `max_concurrent` as large as the number
    of latents. Where all prompts are known, `answer_all` needs one round.

    A batch is a file in the store's folder (which is required) from before it is submitted until
    its answers are stored, so a killed run finds its batches again and submits nothing twice. If
    it was killed while submitting, batches of the same size that the server made since are taken
    for it until their results say otherwise. Requests that errored on the server or expired are
    submitted again up to `resubmissions` times; canceled ones fail.

    - settings: fields of `BatchConfig`.
    - Everything else: see AnthropicClient; `timeout` and `retries` are for single calls of the
      API, and `retries.sleep` is what waits between polls and for the queue.
    """

    batch = True
    batching = BatchConfig()
    """How its batches go, but for the settings of one client."""

    def __init__(
        self,
        model: str,
        *,
        store: str | Path | ResultStore,
        **settings: Any,
    ):
        names = [one.name for one in fields(BatchConfig) if one.name in settings]
        self.batching = replace(self.batching, **{name: settings.pop(name) for name in names})
        super().__init__(model, store=store, **settings)
        if self.store.path is None:
            raise ValueError(
                "Message Batches need a store on disk, to be found again after a crash: give "
                "store= a folder."
            )
        self.folder = self.store.path / "batches"
        if self.folder.is_dir():
            remove_leftovers(self.folder)

    def has(self, request: Request) -> bool:
        return super().has(request) or request.key in self._submitted

    @cached_property
    def _submitted(self) -> frozenset[str]:
        """Requests in batches that an earlier process left."""
        return frozenset(key for file in BatchFile.load_all(self.folder) for key in file.keys)

    async def _send(self, request: Request) -> RequestRecord:
        loop = self._loop()
        if "batches" not in loop.extras:
            loop.extras["batches"] = BatchQueue(self, loop.sdk)
        return await loop.extras["batches"].ask(request)


class BatchQueue:
    """The queue and the batches under way of one client in one event loop."""

    def __init__(self, client: BatchAnthropicClient, sdk: AsyncAnthropic):
        self.client: AnthropicClient = client
        self.folder = client.folder
        self.config = client.batching
        self.api = sdk.messages.batches
        self.queue: list[WaitingRequest] = []
        self.under_way: dict[str, Batch] = {}
        """By request key."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.submitting = asyncio.Lock()
        self.look_on_disk = True
        """Whether the folder may hold batches that nobody looks after."""
        self._arrivals = 0
        self._queued_bytes = 0
        self._idling: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> RequestRecord:
        body = request.body(self.client.config.cache_system)
        size = len(json.dumps(body)) + len(request.key) + 64
        if size > self.config.max_bytes:
            raise ValueError(
                f"A request of {size} bytes is over the limit of a batch ({self.config.max_bytes})."
            )
        if self.look_on_disk:
            self._resume()
        waiting = WaitingRequest(request, size, asyncio.get_running_loop().create_future())
        if request.key in self.under_way:
            self.under_way[request.key].waiting[request.key] = waiting
        else:
            self.enqueue(waiting)
        return await waiting.future

    def enqueue(self, waiting: WaitingRequest) -> None:
        self.queue.append(waiting)
        self._arrivals += 1
        self._queued_bytes += waiting.size
        full = self._queued_bytes >= self.config.max_bytes
        if full or len(self.queue) >= self.config.max_requests:
            self.flush(partly=False)
        if self.queue and (self._idling is None or self._idling.done()):
            self._idling = asyncio.create_task(self._flush_when_idle())

    def flush(self, partly: bool = True) -> None:
        """Start batches for the queue; without `partly` only full ones."""
        self.queue = [w for w in self.queue if not w.future.done()]
        while self.queue:
            count = size = 0
            while count < min(len(self.queue), self.config.max_requests):
                size += self.queue[count].size
                if size > self.config.max_bytes:
                    break
                count += 1
            if count == len(self.queue) < self.config.max_requests and not partly:
                break
            chunk, self.queue = self.queue[:count], self.queue[count:]
            self.start(Batch(self, {w.request.key: w for w in chunk}))
        self._queued_bytes = sum(waiting.size for waiting in self.queue)

    def start(self, batch: Batch) -> None:
        self.under_way.update(dict.fromkeys(batch.keys, batch))
        self.client.store.batches_under_way.add(batch.file.path)
        task = asyncio.create_task(batch.run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def end(self, batch: Batch) -> None:
        for key in batch.keys:
            if self.under_way.get(key) is batch:
                del self.under_way[key]
        self.client.store.batches_under_way.discard(batch.file.path)

    def _resume(self) -> None:
        self.look_on_disk = False
        for file in BatchFile.load_all(self.folder):
            if file.path not in self.client.store.batches_under_way:
                batch = Batch(self, {}, file)
                self.client.ledger.resume(file.reserved)
                batch.held = [file.reserved]
                self.start(batch)

    async def _flush_when_idle(self) -> None:
        seen = -1
        while seen != self._arrivals:
            seen = self._arrivals
            await self.client.config.retries.sleep(self.config.idle)
        self.flush()
