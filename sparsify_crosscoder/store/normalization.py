"""Bringing sources of very different size onto one scale (B.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..world import ALONE, World


def within_norm(
    activations: Sequence[Tensor],
    multiple: float,
    world: World = ALONE,
    medians: Tensor | None = None,
) -> Tensor:
    """Pairs whose norm is at most `multiple` times the median in every source (B.1.4).

    `activations` are raw `[n, d_s]` tensors, one per source. The median is the global batch's, as
    in training, or that of `medians` [S], a crosscoder's `median_norms`, by which a pair is judged
    alike in any batch; where one of these is 0, it is not known. Returns a boolean `[n]`; all true
    if `multiple` is 0. Raises ValueError, on every rank, if an activation is not finite.
    """
    keep = torch.ones(len(activations[0]), dtype=torch.bool, device=activations[0].device)
    for s, x in enumerate(activations):
        norms = x.float().norm(dim=1)
        everywhere = world.gather_rows(norms)
        if not torch.isfinite(everywhere).all():
            raise ValueError(
                f"Activations of source {s} are not finite; check the model's precision "
                f"(--model_dtype float32) and the activation store."
            )
        if multiple and len(everywhere):
            median = everywhere.median()
            if medians is not None:
                known = medians[s].to(median)
                median = torch.where(known > 0, known, median)
            keep &= norms <= multiple * median
    return keep


def median_norms(activations: Sequence[Tensor], world: World = ALONE) -> Tensor:
    """Median norm of each source's raw `[n, d_s]` activations over all ranks, `[S]`."""
    norms = [world.gather_rows(x.float().norm(dim=1)) for x in activations]
    return torch.stack([of_source.median() for of_source in norms])


def estimate_normalization(
    sample: Sequence[Tensor],
    *,
    centred: bool = True,
    target: Literal["mean", "half_sum"] = "mean",
    world: World = ALONE,
) -> tuple[list[Tensor], Tensor]:
    """Means `[d_s]` and one factor per source `[S]` that give every source one median norm.

    `sample` are raw `[n, d_s]` activations without outliers, one tensor per source. The median L2
    norm of `(x - mean) * factor` becomes sqrt(mean(d_s)), or with `half_sum`, the other reading of
    B.1, sqrt(sum(d_s)) / 2. Without `centred` the means are 0, as in the paper.

    Raises ValueError if a source is constant.
    """
    widths = [x.shape[1] for x in sample]
    size = (sum(widths) / len(widths)) ** 0.5 if target == "mean" else sum(widths) ** 0.5 / 2
    means, factors = [], []
    for s, x in enumerate(sample):
        x = x.float()
        count = world.sum(x.new_tensor(float(len(x))))
        mean = world.sum(x.sum(0)) / count if centred else x.new_zeros(x.shape[1])
        median = world.gather_rows((x - mean).norm(dim=1)).median()
        if not median > 0:
            raise ValueError(
                f"Source {s} has the same activation at more than half of the pairs, so its scale "
                f"cannot be estimated; check its hookpoint."
            )
        means.append(mean)
        factors.append(size / median)
    return means, torch.stack(factors)


def geometric_median(x: Tensor, world: World = ALONE, steps: int = 50, tol: float = 1e-5) -> Tensor:
    """Geometric median of the rows of `x` [n, d] over all ranks, by Weiszfeld's iteration."""
    x = x.float()
    median = world.sum(x.sum(0)) / world.sum(x.new_tensor(float(len(x))))
    for _ in range(steps):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-8)
        moments = world.sum(torch.cat([weights @ x, weights.sum()[None]]))
        previous, median = median, moments[:-1] / moments[-1]
        if (median - previous).norm() <= tol * median.norm():
            break
    return median
