"""Whether sources share a basis, as a model and its fine-tune do: as they are, each explains the
others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

LEAST_R2 = 0.5
"""Share of each source's variance that the others' activations, as they are, explain at least where
all share a basis. Two models that were trained apart come to about -1."""

_TOP_DIMENSIONS = 5


def smallest_r2(variances: Sequence[Tensor], left: Sequence[Tensor]) -> float:
    """The smallest of the sources' R2, from the variances `[D]` of each and of what is left of it.

    In the models' own units. The dimensions of largest variance, in which even models without
    anything in common may be alike, do not count.
    """
    total = sum(variances[1:], variances[0])
    count = len(total) - min(_TOP_DIMENSIONS, len(total) - 1)
    kept = total.topk(count, largest=False).indices
    found = []
    for variance, rest in zip(variances, left, strict=True):
        all_of_it, unexplained = float(variance[kept].sum()), float(rest[kept].sum())
        nothing = 1.0 if not unexplained else float("-inf")
        found.append(1 - unexplained / all_of_it if all_of_it > 0 else nothing)
    return min(found)
