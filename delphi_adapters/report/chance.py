"""What chance does to a number: intervals, ranks and agreement of small samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 2_000


def difference_interval(
    first: Sequence[float], second: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of `mean(first) - mean(second)`, both resampled (percentiles).

    Raises ValueError where one of them is empty.
    """
    if not len(first) or not len(second):
        raise ValueError("A difference needs values on both sides.")
    rng = np.random.default_rng(seed)
    means = [
        np.array([x[rng.integers(0, len(x), len(x))].mean() for _ in range(RESAMPLES)])
        for x in (np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    ]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(low), float(high)


def superiority(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of all pairs in which the first is larger; equal ones count half.

    0.5 is what two samples of one distribution give (the area under the ROC curve). Raises
    ValueError where one of them is empty.
    """
    from scipy.stats import mannwhitneyu

    if not len(first) or not len(second):
        raise ValueError("Superiority needs values on both sides.")
    won = mannwhitneyu(first, second, method="asymptotic").statistic
    return float(won / (len(first) * len(second)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; None where a side is constant or there are fewer than three pairs."""
    from scipy.stats import spearmanr

    if len(first) != len(second):
        raise ValueError(f"Pairs need two sides of one length, got {len(first)}, {len(second)}.")
    if len(first) < 3 or any(np.ptp(np.asarray(x, float)) == 0 for x in (first, second)):
        return None
    found: Any = spearmanr(first, second)
    return float(found.statistic)


def reliability(
    scores: Sequence[float], spreads: Sequence[float], prompts: int = 1
) -> float | None:
    """Share of the scores' variance that prompts do not make, 0 to 1.

    A score is the mean over some prompts, a spread the standard deviation over them, so that the
    prompts alone make scores differ by `spread^2 / prompts`. None with fewer than three scores, or
    where all scores are the same.
    """
    variance = float(np.var(np.asarray(scores, float), ddof=1)) if len(scores) >= 3 else 0.0
    if not variance or not len(spreads):
        return None
    noise = float(np.mean(np.square(np.asarray(spreads, float)))) / max(prompts, 1)
    return float(np.clip(1 - noise / variance, 0.0, 1.0))
