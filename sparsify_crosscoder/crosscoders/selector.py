"""The selector: how many latents are active in a batch, and where to look for them.

It owns two kinds of levels, one of each for every group of the partition: the learned threshold of
inference, which a checkpoint keeps, and the smallest score of the last step, which only says where
to look first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..world import World
from .batch_topk import kth_largest
from .float32 import KeepsFloat32
from .partition import Partition
from .selection import (
    NUM_LEVELS,
    Entries,
    Scores,
    entries_reaching,
    largest_entries,
    largest_entries_per_row,
    lowered,
    sampled_level,
)


class Rule(NamedTuple):
    """By what a batch's entries are chosen; by the groups' budgets where `cuts` is None."""

    cuts: Tensor | None
    """Smallest scores to keep, `[G]`."""

    reached: Sequence[bool]
    """Whether there is such a cut, for every group. Where there is none, each pair keeps its k
    largest."""

    @property
    def by_row(self) -> bool:
        """Whether some group is chosen pair by pair, which takes exact pre-activations."""
        return self.cuts is not None and not all(self.reached)


class Selector(KeepsFloat32):
    """Chooses the entries of each group of a partition.

    In training mode the batch decides (BatchTopK); in evaluation mode the learned `threshold` [G]
    does, pair by pair, or the k largest scores of each pair while none is learned.
    """

    float32_buffers = ("threshold",)

    def __init__(self, partition: Partition, device: str | torch.device):
        super().__init__()
        self.partition = partition
        self.levels: dict[int, Tensor] = {}
        """Smallest score that each group kept in the last step."""
        self.threshold: Tensor
        unknown = torch.full((len(partition.groups),), torch.nan, device=device)
        self.register_buffer("threshold", unknown)

    @torch.no_grad()
    def update_threshold(self, cuts: Tensor, decay: float) -> None:
        """Move the inference thresholds towards the batch's smallest selected scores `[G]`."""
        first = torch.isnan(self.threshold)
        moved = self.threshold * decay + cuts.float() * (1 - decay)
        usable = torch.isfinite(cuts)
        self.threshold.copy_(
            torch.where(usable, torch.where(first, cuts.float(), moved), self.threshold)
        )

    def rule(self, cuts: Tensor | None) -> Rule:
        """How to choose, with the `cuts` [G] of a whole batch or None."""
        if self.training:
            return Rule(cuts, [True] * len(self.partition.groups))
        cuts = self.threshold if cuts is None else cuts
        return Rule(cuts, torch.isfinite(cuts).tolist())

    def budgets(self, k: int, num_pairs: int) -> list[int]:
        """Entries that each group selects from `num_pairs` pairs."""
        return [round(group.share * k * num_pairs) for group in self.partition.groups]

    def choose(
        self, scores: Scores, rule: Rule, k: int, world: World
    ) -> tuple[list[Entries], Tensor]:
        """What each group keeps of a batch, and the smallest scores kept, `[G]` in float32."""
        num_pairs = world.total(scores.blocks[0].num_pairs, self.threshold.device)
        budgets = self.budgets(k, num_pairs)
        found, smallest = [], []
        for g, group in enumerate(self.partition.groups):
            if rule.cuts is None:
                level = self._level(g, budgets[g] / max(num_pairs, 1), scores, world)
                entries, cut = largest_entries(budgets[g], level, scores, group, world)
                if budgets[g]:
                    self.levels[g] = cut
            elif rule.reached[g]:
                cut = rule.cuts[g].to(scores.dtype)
                entries = entries_reaching(cut, scores, group)
            else:
                most = max(round(group.share * k), 1)
                entries, cut = largest_entries_per_row(most, scores, group), rule.cuts.new_zeros(())
            found.append(entries)
            smallest.append(cut.to(torch.float32))
        return found, torch.stack(smallest)

    def find_cuts(
        self, chunks: Sequence[Tensor], score: Callable[[Tensor], Scores], k: int, world: World
    ) -> Tensor:
        """The smallest score that each group keeps of a batch given in chunks, `[G]`.

        `score` gives the scores of a chunk.
        """
        groups, device = self.partition.groups, self.threshold.device
        total = world.total(sum(map(len, chunks)), device)
        budgets = self.budgets(k, total)
        cuts = [chunks[0].new_full((), torch.inf) for _ in groups]
        missing = [g for g in range(len(groups)) if budgets[g]]
        levels: dict[int, Tensor] = {}
        for attempt in range(NUM_LEVELS):
            found: dict[int, list[Tensor]] = {g: [] for g in missing}
            for x in chunks if missing else ():
                scores = score(x)
                for g in missing:
                    if g not in levels:
                        levels[g] = self._level(g, budgets[g] / total, scores, world)
                    level = lowered(levels[g], attempt)
                    found[g].append(entries_reaching(level, scores, groups[g]).scores)
            for g in list(missing):
                enough = world.total(sum(map(len, found[g])), device) >= budgets[g]
                if enough or attempt == NUM_LEVELS - 1:
                    cuts[g] = self.levels[g] = kth_largest(found[g], budgets[g], world)
                    missing.remove(g)
        return torch.stack(cuts)

    def _level(self, g: int, share: float, scores: Scores, world: World) -> Tensor:
        """Where to look first for the largest `share` scores per pair of group g."""
        level = self.levels.get(g)
        if level is None:
            return sampled_level(share, scores, self.partition.groups[g], world)
        return level.to(self.threshold.device, scores.dtype)
