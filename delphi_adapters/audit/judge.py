"""Who is asked in an audit: what of it changes outputs, its client, and what asking it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..clients.costs import costs
from ..clients.judge import JudgeConfig, fitting, make_client
from ..clients.judge_time import computed
from ..clients.records import USUAL_ANSWER
from ..clients.stopping import run_asking
from .outcome import CHARACTERS, Cost
from .quantities import Quantities

if TYPE_CHECKING:
    import torch
    from delphi.clients import Client

T = TypeVar("T")


class AuditJudge:
    """The judge of an audit, loaded when it is first asked.

    Args:
        config: who it is.
        folder: of the audit, in which its answers are kept.
        device: of a local judge.
        client: the judge itself, if it is there already.
    """

    def __init__(
        self, config: JudgeConfig, folder: Path, device: torch.device, client: Client | None = None
    ):
        self.config, self.folder = replace(config, device=device), folder
        self._given = client

    @cached_property
    def client(self) -> Client:
        client = self._given or make_client(self.config, self.folder)
        assert client is not None
        return client

    @property
    def at_once(self) -> int:
        """Latents that it is asked about at a time."""
        return self.config.max_concurrent or fitting(self.client)

    def ask(self, work: Awaitable[T]) -> T:
        """What work that asks it comes to; raises Stopped where a budget or somebody stopped it."""
        return run_asking(work, self.client)

    def ledger(self) -> dict[str, Any] | None:
        """Requests, tokens and dollars so far; None for a local judge."""
        counted = getattr(self.client, "ledger", None)
        return None if counted is None else counted.summary()

    # Estimates

    def cost(self, sizes: Sequence[int], items: int, quantities: Quantities) -> Cost:
        """Of requests of so many characters, for each of so many items."""
        requests, tokens = len(sizes) * items, sum(sizes) * items // CHARACTERS
        counts: dict[str, float | None] = {"requests": requests, "prompt tokens": tokens}
        if self._priced is not None:
            dollars = costs(self._priced, ["x" * size for size in sizes], items).dollars
            counts["cost"] = None if dollars is None else dollars.likely_cost
        elif self.config.local:
            name = str(self.config.judge)
            speed = computed(name, quantities.flops, quantities.bandwidth)
            return Cost(speed.seconds(tokens, requests * USUAL_ANSWER), counts)
        return Cost(0.0, counts)

    @cached_property
    def _priced(self) -> Client | None:
        """A client that says prices and is not asked; None for a local judge."""
        if self.config.local:
            return None
        try:
            return make_client(self.config, self.folder, dry_run=True)
        except ValueError as error:
            print(f"No cost can be told: {error}")
            return None
