"""The Dedicated Feature Crosscoder (section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simple_parsing import list_field

from ..config import CrosscoderConfig
from ..registry import Architecture
from .crosscoder import Crosscoder
from .partition import Group, Partition


@dataclass
class DFCConfig(CrosscoderConfig):
    """Dedicated Feature Crosscoder: blocks that belong to one source by structure (2.2)."""

    exclusive_fractions: list[float] = list_field(0.05, 0.05)  # Table 3
    """Fraction of the latents that is exclusive to each source, in the order of the sources."""

    exclusive_budget: float = 0.1
    """Share of k that the exclusive blocks together select by a BatchTopK of their own, divided
    by their sizes. Used when `selection` is `grouped`."""

    selection: Literal["grouped", "joint"] = "grouped"
    """`grouped`: each exclusive block and the shared block have budgets of their own. `joint`: all
    latents compete for one budget, as in the paper, which leaves exclusive ones little to do if
    they are ranked by `score`."""

    def __post_init__(self):
        super().__post_init__()
        if any(not 0 <= f <= 1 for f in self.exclusive_fractions):
            raise ValueError(
                f"exclusive_fractions must lie in [0, 1], got {self.exclusive_fractions}."
            )
        if sum(self.exclusive_fractions) >= 1:
            raise ValueError(
                f"exclusive_fractions {self.exclusive_fractions} sum to "
                f"{sum(self.exclusive_fractions):g}: nothing would be shared. Keep the sum below 1."
            )
        if not 0 < self.exclusive_budget < 1:
            raise ValueError(
                f"exclusive_budget is a share of k between 0 and 1, got {self.exclusive_budget}."
            )


class DedicatedFeatureCrosscoder(Crosscoder):
    """Crosscoder with a block of latents exclusive to each source, ahead of the shared block.

    An exclusive latent's weights to the other sources do not exist, so its decoder there is
    exactly 0, whatever trains it.
    """

    arch = "dfc"
    config_class = DFCConfig

    @classmethod
    def make_partition(
        cls, num_latents: int, d_sources: Sequence[int], cfg: DFCConfig
    ) -> Partition:
        num_sources = len(d_sources)
        if len(cfg.exclusive_fractions) != num_sources:
            raise ValueError(
                f"exclusive_fractions {cfg.exclusive_fractions} gives "
                f"{len(cfg.exclusive_fractions)} fractions for {num_sources} sources; "
                f"give one per source."
            )
        sizes = [round(fraction * num_latents) for fraction in cfg.exclusive_fractions]
        shared = num_latents - sum(sizes)
        if shared < 1:
            raise ValueError(
                f"exclusive_fractions {cfg.exclusive_fractions} leave no shared latent among "
                f"{num_latents}; lower them."
            )
        blocks = [
            *((f"exclusive_{s}", size, (s,)) for s, size in enumerate(sizes)),
            ("shared", shared, tuple(range(num_sources))),
        ]
        partition = Partition.build(num_sources, blocks, group_shares(cfg, sizes))
        if cfg.selection == "joint":
            everything = Group(tuple(range(len(partition.blocks))), 1.0)
            partition = Partition(num_sources, partition.blocks, (everything,))
        return partition


def group_shares(cfg: DFCConfig, sizes: list[int]) -> list[float]:
    """Share of k for each exclusive block, by its size, and for the shared block."""
    total = sum(sizes)
    budget = cfg.exclusive_budget if total else 0.0
    return [budget * size / total if total else 0.0 for size in sizes] + [1 - budget]


DFC = Architecture(
    "dfc",
    DFCConfig,
    DedicatedFeatureCrosscoder,
    description="dedicated features: blocks of latents exclusive to each model",
)
