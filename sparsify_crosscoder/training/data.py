"""The pairs that a run trains on and is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..config import CrosscoderTrainConfig


class PairStream(Protocol):
    """Shuffled activation pairs in an order that is fixed by a seed."""

    @property
    def num_pairs(self) -> int:
        """Pairs in one epoch, over all ranks."""
        ...

    @property
    def d_sources(self) -> list[int]: ...

    def batches(
        self, first_step: int, last_step: int, pairs_per_step: int
    ) -> Iterator[list[Tensor]]:
        """This rank's part of every step's batch: one raw `[n, d_s]` tensor per source."""
        ...

    def sample(self, num_pairs: int) -> list[Tensor]:
        """This rank's part of the first pairs."""
        ...


@dataclass
class PairedData:
    """Streams of pairs, and what they are made of."""

    train: PairStream
    held_out: PairStream | None
    sources: list[dict[str, Any]]
    """`name`, `hookpoint` and `width` of each source."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What alignment and harvest reported."""

    def describe(self) -> dict[str, Any]:
        """What alignment and harvest reported, with the latest counts of the streams."""
        facts = dict(self.facts)
        for name in ("train", "held_out"):
            report = getattr(getattr(self, name), "report", None)
            if report is not None:
                facts[f"harvest_{name}"] = report().to_dict()
        return facts


def check_length(cfg: CrosscoderTrainConfig, num_pairs: int) -> int:
    """Steps that a run over `num_pairs` training pairs takes.

    Raises ValueError if the pairs do not suffice for `max_steps`, or for one step.
    """
    pairs_per_step = cfg.pairs_per_step * cfg.grad_acc_steps
    available = num_pairs * cfg.epochs // pairs_per_step
    steps = cfg.max_steps or available
    if steps > available or not available:
        raise ValueError(
            f"The dataset gives {num_pairs:,} pairs for training: {available:,} steps of "
            f"{pairs_per_step:,} in {cfg.epochs} epoch(s), but {max(steps, 1):,} are asked. Use "
            f"more text, more --epochs, fewer --max_steps or fewer --pairs_per_step."
        )
    return steps
