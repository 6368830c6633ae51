"""The Dedicated Feature Crosscoder (section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import DFCConfig
from .base import Crosscoder
from .partition import Group, Partition


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
