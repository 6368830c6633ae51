"""The pairs that a run trains on and is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..config import CrosscoderTrainConfig
from ..store.stream import ActivationStream


@dataclass
class PairedData:
    """Streams of pairs, and what they are made of."""

    train: ActivationStream
    held_out: ActivationStream | None
    sources: list[dict[str, Any]]
    """`name`, `hookpoint` and `width` of each source, and what tells its model apart."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What alignment and harvest reported."""
    trained_on: dict[str, Any] | None = None
    """What the run records of its models and texts (`provenance.record`)."""

    def describe(self) -> dict[str, Any]:
        """What alignment and harvest reported, with the latest counts of the streams."""
        facts = dict(self.facts)
        for name, stream in (("train", self.train), ("held_out", self.held_out)):
            if stream is not None:
                facts[f"harvest_{name}"] = stream.report().to_dict()
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
