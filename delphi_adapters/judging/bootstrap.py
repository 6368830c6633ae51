"""Confidence intervals of mean ratings, by a bootstrap over prompts.

Answers to one prompt are alike, so prompts are what is drawn. The plain percentile bootstrap is too
narrow for 10 to 30 ratings on a scale of five, and has no width at all where all ratings are equal,
which they often are at an end of the scale. This one is Rubin's (1981): each prompt gets a random
weight, gamma distributed with shape (n - 1) / n, where shape 1 would be too narrow by that factor;
and for each limit a piece of a prompt is added whose rating is that end of the scale, as in
Gaffke's bound for the mean of a bounded variable. The weight of that piece, `END`, was chosen by
simulation: 4,000 samples each of ratings from 1 to 5 that were even, symmetric, skewed, heaped at
an end (70% and 85% of them there), or rounded with an effect of the prompt, and of paired
differences of such. What 95% intervals covered:

                     percentile     Student's t   this one
    30 prompts       85 to 95%      86 to 95%     94.8 to 97.5%
    20 prompts                                    95.3 to 98.2%
    10 prompts       80 to 93%      80 to 95%     94.0 to 98.8%

The highest are those of samples heaped at an end, whose means have few possible values. An interval
is never without width: 30 ratings of 1 give 1 to 1.20, since a rare higher one may have been
missed. Where one prompt in fifteen is rated 5 and all others 1, the interval is still too narrow:
it covers 86% at 30 prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LOWEST, HIGHEST = 1.0, 5.0
LEVEL = 0.95
DRAWS = 10_000
END = 0.8
"""Weight of the piece of a prompt at an end, times the length of the scale: 0.2 for ratings from 1
to 5, 0.1 for their differences, which are from -4 to 4."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float | None
    """None without any prompt."""

    low: float | None
    high: float | None
    n: int
    """Prompts that have a rating."""


def interval(
    ratings: ArrayLike, lowest: float = LOWEST, highest: float = HIGHEST, level: float = LEVEL
) -> Interval:
    """The mean over prompts with its interval.

    `ratings` is `[prompts]`, or `[prompts, ratings]`, of which a prompt's mean counts; NaN is a
    rating that is missing. One prompt says nothing of others: its interval is the whole scale.
    Raises ValueError for a rating off the scale.
    """
    return intervals([_per_prompt(ratings)], lowest, highest, level)[0]


def intervals(
    rows: ArrayLike, lowest: float = LOWEST, highest: float = HIGHEST, level: float = LEVEL
) -> list[Interval]:
    """An interval for each row of `[rows, prompts]`, as of ratings at several strengths."""
    values = np.asarray(rows, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"Ratings must be [rows, prompts], got shape {list(values.shape)}.")
    if np.any((values < lowest - 1e-9) | (values > highest + 1e-9)):
        raise ValueError(f"There is a rating that is not from {lowest:g} to {highest:g}.")
    counts = np.sum(~np.isnan(values), 1)
    found: list[Interval | None] = [None] * len(values)
    for n in np.unique(counts):
        which = np.flatnonzero(counts == n)
        # Sorted, so that the order of the prompts does not matter; NaN goes to the end.
        some = np.sort(values[which], 1)[:, :n]
        for row, one in zip(which, _intervals(some, lowest, highest, level), strict=True):
            found[row] = one
    return [one for one in found if one is not None]


def difference(
    first: ArrayLike, second: ArrayLike, level: float = LEVEL, span: float = HIGHEST - LOWEST
) -> Interval:
    """The mean of `second - first` on the same prompts, as of two strengths or two models.

    Both have a row per prompt, in the same order; a prompt without a rating in one is left out.
    Raises ValueError where they are not of the same length.
    """
    a, b = _per_prompt(first), _per_prompt(second)
    if len(a) != len(b):
        raise ValueError(
            f"Ratings of {len(a)} and of {len(b)} prompts cannot be paired: both must be of the "
            "same prompts in the same order."
        )
    return interval(b - a, -span, span, level)


@lru_cache(maxsize=16)
def prompt_weights(n: int, draws: int = DRAWS) -> Array:
    """Random weights of n prompts, `[draws, n]`, each row summing to 1; not to be written to."""
    if n < 2:
        return np.ones((draws, n))
    weights = np.random.default_rng([0, n]).gamma((n - 1) / n, size=(draws, n))
    weights /= weights.sum(1, keepdims=True)
    weights.setflags(write=False)
    return weights


def limits(
    means: Array, n: int, lowest: float, highest: float, level: float = LEVEL
) -> tuple[Array, Array]:
    """Limits from means `[..., draws]` that have the `prompt_weights` of n prompts."""
    end = END / (highest - lowest)
    share = np.random.default_rng([1, n]).beta(end, max(n - 1, 1), size=means.shape[-1])
    tail = (1 - level) / 2
    low = np.quantile(means + share * (lowest - means), tail, axis=-1)
    high = np.quantile(means + share * (highest - means), 1 - tail, axis=-1)
    return low, high


def _intervals(values: Array, lowest: float, highest: float, level: float) -> Sequence[Interval]:
    """Of `[rows, n]` without a gap."""
    n = values.shape[1]
    if n == 0:
        return [Interval(None, None, None, 0)] * len(values)
    means = values.mean(1)
    if n == 1:
        return [Interval(float(mean), lowest, highest, 1) for mean in means]
    draws = values @ prompt_weights(n).T
    low, high = limits(draws, n, lowest, highest, level)
    # Weights sum to 1 but for rounding.
    low, high = np.clip(low, lowest, means), np.clip(high, means, highest)
    found = zip(means.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Interval(mean, a, b, n) for mean, a, b in found]


def _per_prompt(ratings: ArrayLike) -> Array:
    """A prompt's mean, `[prompts]`; NaN for one without a rating."""
    values = np.asarray(ratings, dtype=float)
    if values.ndim == 1:
        return values
    if values.ndim != 2:
        raise ValueError(
            f"Ratings must be [prompts] or [prompts, ratings], got shape {list(values.shape)}."
        )
    there = ~np.isnan(values)
    sums, counts = np.where(there, values, 0).sum(1), there.sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
