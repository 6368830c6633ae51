"""BatchTopK (Bussmann et al. 2024): the largest entries of a whole batch stay.

In a distributed run `world` brings the ranks together, so that the batch is the global one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..world import ALONE, World


def kth_largest(scores: list[Tensor], k: int, world: World = ALONE) -> Tensor:
    """The k-th largest entry of all `scores` on all ranks; 0 if fewer than k are positive.

    `scores` are tensors of any shape with entries >= 0; k >= 1. Returns a scalar tensor.
    """
    largest = scores[0].new_zeros(0)
    for chunk in scores:
        flat = chunk.reshape(-1)
        largest = torch.cat([largest, flat.topk(min(k, flat.numel()), sorted=False).values])
        if len(largest) > k:
            largest = largest.topk(k, sorted=False).values
    if world.size > 1:
        padded = largest.new_zeros(k)
        padded[: len(largest)] = largest
        largest = world.gather(padded).topk(k, sorted=False).values
    return largest.min() if len(largest) == k else scores[0].new_zeros(())


def select_largest(scores: Tensor, budget: int, world: World = ALONE) -> tuple[Tensor, Tensor]:
    """Mark the `budget` largest positive entries of the global batch.

    `scores` [N, M] >= 0. Returns the mask `[N, M]` and the smallest selected score (0 if all
    positive entries were selected). Ties at the cut are broken by rank, pair and latent, in order.
    """
    if budget < 1:
        return torch.zeros_like(scores, dtype=torch.bool), scores.new_full((), torch.inf)
    cut = kth_largest([scores], budget, world)
    mask = select_above(scores, cut)
    tied = (scores == cut) & mask
    counts = torch.stack([mask.sum() - tied.sum(), tied.sum()])[None]
    all_counts = world.gather(counts)
    surplus = int(all_counts.sum()) - budget
    if surplus > 0:
        mask &= ~tied
        free = budget - int(all_counts[:, 0].sum())
        before = int(all_counts[: world.rank, 1].sum())
        kept = tied.flatten().nonzero()[: max(free - before, 0), 0]
        mask.view(-1)[kept] = True
    return mask, cut


def select_above(scores: Tensor, cut: Tensor | float) -> Tensor:
    """Mark the positive entries of `scores` [N, M] that reach `cut`."""
    return (scores >= cut) & (scores > 0)


def select_largest_per_row(scores: Tensor, k: int) -> Tensor:
    """Mark the k largest positive entries of every row of `scores` [N, M]."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    values, indices = scores.topk(min(k, scores.shape[1]), dim=1)
    return mask.scatter_(1, indices, values > 0)
