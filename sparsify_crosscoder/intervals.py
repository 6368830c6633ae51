"""How sure a counted rate is, and what was measured on some texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAWS = 4_000


class Interval(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3, sign: bool = False) -> str:
        """The same in words."""
        form = f"{'+' if sign else ''}.{digits}f"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


def rate_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate; (0, 1) of nothing.

    Raises ValueError unless 0 <= count <= of.
    """
    if not 0 <= count <= of:
        raise ValueError(f"A rate counts some of all, got {count} of {of}.")
    if not of:
        return 0.0, 1.0
    from scipy.stats import binomtest

    low, high = binomtest(count, of).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def interval_over_texts(
    sums: NDArray, of: Callable[[NDArray], NDArray], *, seed: int = 0
) -> Interval:
    """What follows from sums over texts `[texts, K]`, with an interval by a bootstrap over texts.

    `of` makes a value of totals `[..., K]`, such as the quotient of two of them. Each text has a
    random weight, gamma distributed with shape (n - 1) / n (Rubin 1981; with shape 1 intervals are
    too narrow by that factor). Raises ValueError for fewer than two texts.
    """
    import numpy as np

    n = len(sums)
    if n < 2:
        raise ValueError(f"An interval over texts needs two texts or more, got {n}.")
    weights = np.random.default_rng(seed).gamma((n - 1) / n, size=(_DRAWS, n))
    drawn = of((n * weights / weights.sum(1, keepdims=True)) @ sums)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(of(sums.sum(0))), float(low), float(high))
