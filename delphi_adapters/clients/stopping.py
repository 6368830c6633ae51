"""Asking a judge until it has answered, or until a budget or somebody stops it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from .ledger import BudgetExceeded, RunStopped

if TYPE_CHECKING:
    from delphi.clients import Client

T = TypeVar("T")

GOES_ON = "the same command goes on, and no answer is asked for twice"


class Stopped(Exception):
    """A budget, or somebody, stopped the judge; what it answered is kept."""


def run_asking(work: Awaitable[T], client: Client) -> T:
    """What `work`, which asks the client, comes to.

    The first interrupt lets requests in flight be answered, since they are paid for. Raises Stopped
    with the reason where a budget or somebody stopped it.
    """
    from .api_client import ApiClient
    from .batches import BatchAnthropicClient

    ledger = None if isinstance(client, BatchAnthropicClient) else getattr(client, "ledger", None)

    async def main() -> T:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM) if ledger is not None else ()

        def stop() -> None:
            assert ledger is not None
            print("Waiting for the requests in flight; once more to stop at once.", file=sys.stderr)
            ledger.stop()
            for one in signals:
                loop.remove_signal_handler(one)

        def quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if not isinstance(context.get("exception"), BudgetExceeded | RunStopped):
                loop.default_exception_handler(context)

        loop.set_exception_handler(quiet)
        for one in signals:
            with suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread
                loop.add_signal_handler(one, stop)
        found = await work
        if isinstance(client, ApiClient):
            await client.aclose()
        return found

    try:
        return asyncio.run(main())
    except (BudgetExceeded, RunStopped) as reason:
        raise Stopped(str(reason)) from None
