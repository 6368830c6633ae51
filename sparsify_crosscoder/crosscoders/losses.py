"""The terms of the loss beside the fraction of variance unexplained, as functions of the errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..world import World


def unsquared(
    error: Tensor, widths: Sequence[int], total_variance: Tensor, num_pairs: float
) -> Tensor:
    """Mean L2 norm of each pair's `error` [N, D] in each source, relative to the batch's spread.

    `widths` are those of the sources; variance and pairs are those of the whole batch.
    """
    parts = error.split(list(widths), 1)
    norms = torch.stack([part.norm(dim=1).sum() for part in parts]).sum()
    return norms / (total_variance * num_pairs * len(parts)).sqrt()


def auxiliary(residual: Tensor, e_hat: Tensor, num_pairs: float, world: World) -> Tensor:
    """Squared error of the dead latents' reconstruction `e_hat` of the residual [N, D] (B.1.5).

    Divided by the residual's variance; 0 where that is not finite. Each rank's `num_pairs` is its
    share of the whole batch's.
    """
    moments = world.sum(
        torch.cat(
            [
                residual.sum(0),
                residual.pow(2).sum()[None],
                residual.new_tensor([float(len(residual))]),
            ]
        )
    )
    total, squares, count = moments[:-2], moments[-2], moments[-1]
    variance = (squares - total.pow(2).sum() / count) / world.size

    # A chunk counts by its share of the batch, so that chunks add up to the whole.
    share = count / (num_pairs * world.size)
    auxk = share * (e_hat - residual).pow(2).sum() / variance
    return torch.where(torch.isfinite(auxk), auxk, torch.zeros_like(auxk))
