"""How sure a counted rate is."""

from __future__ import annotations


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
