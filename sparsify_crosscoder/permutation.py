"""How often chance does as much: exact p-values, whose smallest is told by how much was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BEYOND_CHANCE = 0.05
"""Largest p, of either side together, at which something is said to be beyond chance."""

RESAMPLES = 9_999


def rank_p(value: float, nulls: Sequence[float]) -> float:
    """Chance of so large a value among nulls, (1 + those at least as large) / (1 + N).

    With N of them it is 1 / (1 + N) at least, whatever the value.
    """
    return (1 + sum(null >= value for null in nulls)) / (1 + len(nulls))


def group_p(larger: Sequence[float], smaller: Sequence[float], seed: int = 0) -> float:
    """Chance that the first group's mean is so much larger where both are of one distribution.

    Over all ways to divide the values into two such groups, or 9,999 drawn ones with the one that
    is there where these are fewer. Raises ValueError where a group is empty.
    """
    if not len(larger) or not len(smaller):
        raise ValueError("A comparison needs values on both sides.")
    import numpy as np
    from scipy.stats import permutation_test

    def difference(a: Any, b: Any, axis: int) -> Any:
        # Divisions that come to the same must not differ by rounding.
        return np.round(np.mean(a, axis=axis) - np.mean(b, axis=axis), 12)

    groups = [np.asarray(group, dtype=float) for group in (larger, smaller)]
    found: Any = (
        permutation_test(
            groups,
            difference,
            vectorized=True,
            alternative="greater",
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(seed),
        )
        if sum(map(len, groups)) > 2
        else None
    )
    return 1.0 if found is None else float(found.pvalue)
