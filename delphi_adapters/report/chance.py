"""What chance does to a number: intervals, ranks and agreement of small samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Z = 1.959964  # of a normal distribution, for 95%
RESAMPLES = 2_000


def rate_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate; (0, 1) of nothing.

    Raises ValueError unless 0 <= count <= of.
    """
    if not 0 <= count <= of:
        raise ValueError(f"A rate counts some of all, got {count} of {of}.")
    if not of:
        return 0.0, 1.0
    rate = count / of
    middle = (rate + Z**2 / (2 * of)) / (1 + Z**2 / of)
    half = Z * (rate * (1 - rate) / of + Z**2 / (4 * of**2)) ** 0.5 / (1 + Z**2 / of)
    # At the ends rounding would leave something beside 0 and 1.
    return max(middle - half, 0.0) if count else 0.0, min(middle + half, 1.0) if count < of else 1.0


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
    from scipy.stats import rankdata

    n, m = len(first), len(second)
    if not n or not m:
        raise ValueError("Superiority needs values on both sides.")
    ranks = rankdata(np.concatenate([np.asarray(first, float), np.asarray(second, float)]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; None where a side is constant or there are fewer than three pairs."""
    from scipy.stats import rankdata

    if len(first) != len(second):
        raise ValueError(f"Pairs need two sides of one length, got {len(first)}, {len(second)}.")
    ranks = [rankdata(np.asarray(x, float)) for x in (first, second)]
    if len(first) < 3 or any(np.ptp(x) == 0 for x in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


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
