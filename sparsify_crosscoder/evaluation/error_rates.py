"""Which share of a list is false, from the lists of pairs without what is looked for.

Of what could have been an entry of a null's list, some share r(s) is one with a score of s or more.
Of the audited pair's T things that could have been, r(s) T are then expected to be there by no
difference of the kind looked for, and among the n(s) entries that are at least as strong their
share is r(s) T / n(s), at most 1 (Storey and Tibshirani 2003, with nulls that were measured). The
q value of an entry is the smallest such share of all lists that hold it.

    null 1: 0.31 0.08 ...            of 1,024 things
    null 2: 0.12 ...                 of 1,019 things
    list:   0.87 0.64 0.31 0.12 ...  of 1,022 things

    at .31: one of 2,043 in the nulls, so .50 of 1,022; of three entries that is a share of .17
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..intervals import rate_interval


class NullList(NamedTuple):
    """What was listed of a pair without what is looked for."""

    name: str
    scores: Tensor
    """Of its entries that could be findings, `[n]`."""

    tested: int
    """Things that could have been entries: latents that fire, shifts, linear changes."""


class ErrorRate(NamedTuple):
    """The share of a list, down to one entry, that is expected to be false."""

    q_value: float
    low: float
    """95% interval of the share, which has the chance of what the nulls' latents were; that the
    nulls are like the audited pair but for the difference is taken for granted."""

    high: float


def error_rates(scores: Tensor, tested: int, nulls: Sequence[NullList]) -> list[ErrorRate]:
    """The error rate of each entry, in the order of `scores` `[n]`, by what the nulls list.

    `tested` is how many things could have been entries. Raises ValueError without nulls, or where
    in none anything could have been an entry.
    """
    trials = sum(null.tested for null in nulls)
    if not trials:
        raise ValueError("An error rate needs nulls in which something could have been listed.")
    pooled = torch.cat([null.scores.double() for null in nulls]).sort().values
    ordered, order = scores.double().sort(descending=True, stable=True)
    # Of equal scores all are in the list.
    as_strong = len(ordered) - torch.searchsorted(ordered.flip(0), ordered)
    by_chance = (len(pooled) - torch.searchsorted(pooled, ordered)).clamp_max(trials)
    shares = by_chance * tested / (trials * as_strong)
    found = [ErrorRate(1.0, 1.0, 1.0)] * len(scores)
    interval = cache(lambda count: rate_interval(count, trials))
    best = len(order) - 1
    for place in range(len(order) - 1, -1, -1):
        if shares[place] < shares[best]:
            best = place
        factor = tested / int(as_strong[best])
        bounds = (min(1.0, rate * factor) for rate in interval(int(by_chance[best])))
        found[int(order[place])] = ErrorRate(min(1.0, float(shares[best])), *bounds)
    return found
