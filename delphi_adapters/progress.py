"""Progress of what is asked of a judge, with the time that is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
SECONDS = 10.0  # between two signs of life


@asynccontextmanager
async def progress(total: int, what: str, unit: str = "latent") -> AsyncIterator[Any]:
    """A bar that says what is left, also while a single answer takes minutes."""
    bar = tqdm(total=total, desc=what, unit=unit, disable=not total)

    async def beat() -> None:
        while True:
            await asyncio.sleep(SECONDS)
            bar.refresh()

    beating = asyncio.create_task(beat())
    try:
        yield bar
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
        bar.close()


async def each(
    items: AsyncIterable[T], do: Callable[[T], Awaitable[Any]], at_once: int, bar: Any
) -> None:
    """Do something with every item, so many at a time; the first exception gets out."""

    async def one(item: T) -> None:
        await do(item)
        bar.update()

    running: set[asyncio.Task[None]] = set()
    async for item in items:
        running.add(asyncio.create_task(one(item)))
        if len(running) >= at_once:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    for task in asyncio.as_completed(running):
        await task
