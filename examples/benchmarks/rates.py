"""Rates of ways that take turns, so that what else the machine does meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

Rates = dict[str, list[float]]


class Timed(NamedTuple):
    """What something took."""

    pairs: int
    seconds: float
    cpu_seconds: float
    """Of all threads of the process."""


def timed(run: Callable[[], object], pairs: int) -> Timed:
    """What `run` takes, which handles so many pairs."""
    begun, cpu_begun = perf_counter(), process_time()
    run()
    return Timed(pairs, perf_counter() - begun, process_time() - cpu_begun)


def add(rates: Rates, cpu_rates: Rates, way: str, took: Timed) -> None:
    """Note the pairs per second of a way, on the clock and in the CPU's time."""
    rates.setdefault(way, []).append(took.pairs / took.seconds)
    cpu_rates.setdefault(way, []).append(took.pairs / max(took.cpu_seconds, 1e-9))


def ratio(rates: Mapping[str, Sequence[float]], way: str, other: str) -> float:
    """How many times the rate of `other` that of `way` is: the median over the rounds."""
    return median(a / b for a, b in zip(rates[way], rates[other], strict=True))
