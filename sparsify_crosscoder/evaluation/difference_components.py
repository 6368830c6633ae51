"""Principal components of a difference as columns beside the latents.

Where a crosscoder is of two architectures, no latent may be about what a fine-tune does differently
from its base; the largest directions of that difference are looked at as well, each to both sides.

N pairs, M latents, K components, D width of a source.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..crosscoders import SparseCode
from .latent_shifts import CodedPairs
from .residuals import Residual

COMPONENTS = 10
"""Directions of largest variance that are looked at."""

FAR = 3.0
"""Standard deviations from which a component is present."""


@torch.no_grad()
def with_components(found: CodedPairs, residual: Residual) -> CodedPairs:
    """The same pairs with 2 K columns behind the latents: components of a residual, to one side
    and the other, present where they are `FAR` out, and as active as that."""
    variances, directions = torch.linalg.eigh(residual.unwhitening)
    count = min(COMPONENTS, len(variances))
    along = (directions / variances.clamp_min(1e-30)).flip(1)[:, :count]
    columns = len(found.level) + 2 * count
    codes, firings = [], torch.zeros(2 * count, dtype=torch.long)
    for (_, x, _), code in zip(found.batches(), found.codes, strict=True):
        values = (residual.prediction.residual(x) - residual.mean) @ along
        both = torch.cat([values, -values], 1).cpu()
        rows, sides = (both > FAR).nonzero().T
        firings += torch.bincount(sides, minlength=2 * count)
        codes.append(_joined(code, both[rows, sides], sides + len(found.level), rows, columns))
    level = torch.full((2 * count,), FAR, dtype=found.level.dtype)
    return replace(
        found,
        codes=codes,
        level=torch.cat([found.level, level]),
        firings=torch.cat([found.firings, firings]),
        present=torch.cat([found.present, firings]),
    )


def _joined(
    code: SparseCode, acts: Tensor, indices: Tensor, rows: Tensor, columns: int
) -> SparseCode:
    """A code with further entries, sorted by pair."""
    order = torch.cat([code.rows, rows]).argsort(stable=True)
    return SparseCode(
        torch.cat([code.acts, acts.to(code.acts)])[order],
        torch.cat([code.indices, indices])[order],
        torch.cat([code.rows, rows])[order],
        (code.shape[0], columns),
    )
