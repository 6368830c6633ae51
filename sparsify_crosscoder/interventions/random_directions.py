"""Directions drawn at random, which a direction that is said to do something must outdo.

n tokens, D width, R directions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..store.normalization import within_norm

Null = Literal["activations", "isotropic"]

OUTLIER_MULTIPLE = 2.0
"""Of the median norm; a few tokens' huge activations would else be in every direction (B.1.4)."""


def random_directions(
    vector: Tensor, count: int, *, like: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Directions as long as `vector` [D] and at a right angle to it, `[R, D]`.

    They have the covariance of the rows of `like` [n, D], so that they lie where activations do;
    without it, they lie anywhere, where a model hardly reacts to most. Raises ValueError where
    the rows are all alike but for the direction.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = vector.double() / vector.double().norm()
    if like is None:
        drawn = torch.randn(count, len(unit), generator=generator, dtype=torch.float64)
    else:
        rows = like[within_norm([like], OUTLIER_MULTIPLE)].double()
        rows = rows - rows.mean(0)
        drawn = torch.randn(count, len(rows), generator=generator, dtype=torch.float64) @ rows
    rest = drawn - (drawn @ unit)[:, None] * unit
    norms = rest.norm(dim=1, keepdim=True)
    if not (norms > 1e-6 * drawn.norm(dim=1, keepdim=True)).all():
        raise ValueError(
            "The activations vary along the direction alone, so no other can be drawn from them."
        )
    return (rest / norms * vector.double().norm()).float()
