"""What follows from what was measured of a latent, where its standard errors allow it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .latent_statistics import Estimate, LatentStatistics, at_rate

CLEAR = 1.645
"""Standard errors from a threshold that make a side of it clear: one in twenty is wrong."""

PRECISE = 0.05
"""Standard error at which what is measured counts, however near a threshold it is."""

LEAST_BLOCKS = 3
"""Folds of the pairs in which a latent has to fire, or its errors cannot be told."""

LEAST_AT_RATE = 0.25
"""R2 from its own source, as if it fired on 1% of the pairs, that is enough for a rare latent. What
lies in the tail of a normal distribution reaches .05 to .09."""


class Verdict(IntEnum):
    """What the filter says of a latent."""

    KEPT = 0
    PREDICTABLE = 1
    SHADOW = 2
    TOO_RARE = 3
    NOT_LINEAR = 4
    UNCLEAR = 5

    @property
    def reason(self) -> str:
        return _REASONS[self]

    @property
    def scorable(self) -> bool:
        return self in (Verdict.KEPT, Verdict.PREDICTABLE, Verdict.SHADOW)


_REASONS = {
    Verdict.KEPT: "its own source tells its activation, the others do not",
    Verdict.PREDICTABLE: "the other sources predict its activation about as well as its own: they "
    "tell where it fires, which does not say that they do the same there",
    Verdict.SHADOW: "it moves what the other sources have of their own",
    Verdict.TOO_RARE: "not scorable: it fires on too few pairs",
    Verdict.NOT_LINEAR: "not scorable: even its own source does not predict its activation",
    Verdict.UNCLEAR: "not scorable: what is measured may be on either side of a threshold",
}


@dataclass(frozen=True)
class Thresholds:
    """What a verdict depends on; see `FilterConfig`."""

    predictability: float
    shadow: float
    min_own: float
    min_firings: int


def decide(
    measured: LatentStatistics, firings: Tensor, pairs: int, thresholds: Thresholds
) -> tuple[Tensor, Tensor]:
    """Verdicts `[L]`, and the firings at which those that are not clear would be, else 0, `[L]`."""
    rate = firings.double() / max(pairs, 1)
    least = at_rate(torch.full_like(rate, thresholds.min_own), rate)
    least = least.clamp_max(max(LEAST_AT_RATE, thresholds.min_own))
    told = _Side.of(measured.own_at_rate, least)
    predicted = _Side.of(measured.margin, torch.zeros_like(rate))
    # So well that they would be half as good as a source that barely tells it: whether its own
    # does need not be known.
    shared = _Side.of(measured.others_at_rate, thresholds.predictability * least)
    moves = measured.shadow.value >= thresholds.shadow

    verdicts = torch.full_like(firings, int(Verdict.UNCLEAR))
    alone = told.above & predicted.below
    verdicts[alone & ~moves] = Verdict.KEPT
    verdicts[alone & moves] = Verdict.SHADOW
    verdicts[told.below] = Verdict.NOT_LINEAR
    verdicts[(told.above | shared.above) & predicted.above] = Verdict.PREDICTABLE
    needed = torch.maximum(
        told.factor, torch.where(told.above, predicted.factor, 1.0)
    ) * firings.clamp_min(1)
    apart = measured.blocks >= LEAST_BLOCKS
    needed = torch.where(apart, needed, 2.0 * firings)
    needed = needed.ceil().long().clamp_min(thresholds.min_firings)
    verdicts[~apart] = Verdict.UNCLEAR
    verdicts[firings < thresholds.min_firings] = Verdict.TOO_RARE
    open_ones = (verdicts == Verdict.UNCLEAR) | (verdicts == Verdict.TOO_RARE)
    return verdicts, torch.where(open_ones, torch.maximum(needed, firings + 1), 0)


@dataclass(frozen=True)
class _Side:
    """On which side of a threshold something is, `[L]`; neither where that is not clear."""

    above: Tensor
    below: Tensor
    factor: Tensor
    """How many times as many firings would make it clear; 1 where it is."""

    @classmethod
    def of(cls, measured: Estimate, threshold: Tensor) -> _Side:
        distance = measured.value - threshold
        clear = (distance.abs() >= CLEAR * measured.error) | (measured.error <= PRECISE)
        # Errors shrink with the root of the firings, until they are small or the side is clear.
        enough = (distance.abs() / CLEAR).clamp_min(PRECISE)
        factor = torch.where(clear, 1.0, (measured.error / enough).square())
        return cls(clear & (distance >= 0), clear & (distance < 0), factor)
