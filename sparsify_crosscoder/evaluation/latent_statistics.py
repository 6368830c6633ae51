"""What is measured of each latent: how well sources tell its activation, and what it moves of them.

All of it with standard errors from folds of the pairs, so that it is known of rare latents too how
much they can say. L latents, K folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..crosscoders.rdfc import ridge_regression
from .jackknife import squared_lengths, standard_error
from .latent_moments import LatentMoments, left_out

RATE = 0.01
"""Share of the pairs as if on which a rarer latent fired."""

ERRORS = 3  # standard errors that are no evidence of a shadow
CHUNK_NUMBERS = 2**24  # of a matrix that is made of some latents at once


class Estimate(NamedTuple):
    """A number of each latent, and how far it is to be trusted, `[L]` both."""

    value: Tensor
    error: Tensor
    """One standard error."""


@dataclass(frozen=True)
class LatentStatistics:
    """What is measured of L latents."""

    own: Estimate
    """R2 of its activation predicted linearly from its own source."""

    others: Estimate
    """R2 of its activation predicted from the other sources."""

    own_at_rate: Estimate
    """The first, as if it fired on 1% of the pairs where it fires on fewer; see `at_rate`."""

    others_at_rate: Estimate
    """The second, likewise."""

    margin: Estimate
    """`others_at_rate - predictability * own_at_rate`: from 0 on it counts as predictable."""

    shadow: Estimate
    """Effect on what is left of the other sources, less three standard errors, as a multiple of
    that on its own; see `_shadows`."""

    score: Estimate
    """Share of its activation that its own source alone tells, less what it moves of the others:
    `(own_at_rate - others_at_rate) (1 - shadow)`, each within [0, 1]."""

    presence: Estimate
    """Share of the pairs on which it fires."""

    blocks: Tensor
    """Folds of the pairs in which it fires, `[L]`."""

    @classmethod
    def join(cls, parts: Sequence[LatentStatistics], order: Tensor) -> LatentStatistics:
        """The same of the latents of several parts, in another order."""
        joined = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            joined[field.name] = (
                torch.cat(values)[order]
                if isinstance(values[0], Tensor)
                else Estimate(*(torch.cat(some)[order] for some in zip(*values, strict=True)))
            )
        return cls(**joined)


def at_rate(share: Tensor, rate: Tensor) -> Tensor:
    """R2 `[...]` of events on a share `rate` of the pairs, as if they were on `RATE` of them.

    However far the pairs of a rare event lie from all others, R2 is small: there are few of them.
    R2 / (1 - R2) is the squared distance, in standard deviations, times rate (1 - rate). R2 of
    events that are no rarer stays as it is.
    """
    share = share.clamp_max(0.999)
    odds = share / (1 - share) * (RATE / rate.clamp_min(1e-30)).clamp_min(1)
    return odds / (1 + odds)


@torch.no_grad()
def latent_statistics(
    crosscoder: Crosscoder,
    moments: LatentMoments,
    sources: Tensor,
    *,
    predictability: float,
    ridge: float,
) -> LatentStatistics:
    """Measure latents that are called exclusive to `sources` [L]."""
    sizes = moments.fold_pairs
    numbers = 1 + len(sizes), len(sources)
    own, others, moved = torch.zeros(3, *numbers, dtype=torch.float64)
    for s, columns in enumerate(crosscoder.columns):
        if not (sources == s).any():
            continue
        rest = [c for r, c in enumerate(crosscoder.columns) if r != s]
        shares = (
            (own, _predicting(moments.x_covariance, [columns], ridge)),
            (others, _predicting(moments.x_covariance, rest, ridge)),
        )
        effects = [_Effects.of(moments.x_covariance, columns, other, ridge) for other in rest]
        for some in chunks(sources, s, moments):
            vectors = moments.products("cross", some)
            for result, weights in shares:
                result[:, some] = squared_lengths(vectors @ weights, sizes)
            moved[:, some] = _moved(moments, some, effects)
    variance = moments.variances("cross")
    own, others = (
        torch.where(variance > 0, length / variance.clamp_min(1e-30), 0.0)
        for length in (own, others)
    )
    rate = left_out(moments.fired.double()) / left_out(sizes[:, None]).clamp_min(1)
    told, told_by_others = at_rate(own, rate), at_rate(others, rate)
    alone = (told - told_by_others.clamp_min(0)).clamp(0, 1)
    return LatentStatistics(
        own=_estimate(own),
        others=_estimate(others),
        own_at_rate=_estimate(told),
        others_at_rate=_estimate(told_by_others),
        margin=_estimate(told_by_others - predictability * told),
        shadow=root(moved),
        score=_estimate(alone * (1 - moved.clamp(0, 1).sqrt())),
        presence=_estimate(rate),
        blocks=(moments.fired > 0).sum(0),
    )


def chunks(sources: Tensor, source: int, moments: LatentMoments) -> Iterator[Tensor]:
    """Places of the latents of one source, so many at once that what is made of them is small."""
    size = max(CHUNK_NUMBERS // (moments.cross.shape[0] * moments.cross.shape[2]), 1)
    yield from (sources == source).nonzero()[:, 0].split(size)


def root(squares: Tensor) -> Estimate:
    """The root of squares `[1 + K, L]`, 0 of negative ones; its error is half of its interval."""
    value, error = squares[0], standard_error(squares)
    ends = [(value + side * error).clamp_min(0).sqrt() for side in (-1, 1)]
    return Estimate(value.clamp_min(0).sqrt(), (ends[1] - ends[0]) / 2)


def _estimate(values: Tensor) -> Estimate:
    return Estimate(values[0], standard_error(values))


def _predicting(covariance: Tensor, columns: Sequence[slice], ridge: float) -> Tensor:
    """Weights `[D, d]` by which covariances become vectors whose squared length is explained.

    With a ridge regression's weights `w = (C + p)^-1 c` that is `2 w c - w C w`, as on other pairs.
    """
    read = torch.cat([torch.arange(c.start, c.stop) for c in columns])
    values, directions = torch.linalg.eigh(covariance[read][:, read])
    values = values.clamp_min(0)
    penalty = ridge * values.mean().clamp_min(1e-30)
    weights = covariance.new_zeros(len(covariance), len(read))
    weights[read] = directions * ((values + 2 * penalty).sqrt() / (values + penalty))
    return weights.float()


class _Effects(NamedTuple):
    """From a latent's covariances to what it moves of its own source and of another one.

    With linear maps R between source s and another one r, a latent moves what r does not predict
    of s by `|cov(x_s) - R_rs cov(x_r)|`. What it moves of r is taken without what goes to s and
    comes back: `|cov(x_r) - R_sr R_rs cov(x_r)|`. Were it `cov(x_r) - R_sr cov(x_s)`, a concept of
    s alone would count as moving r, where the map makes of it something that r does not have.
    """

    home: Tensor
    """`[D, d_s]`."""

    away: Tensor
    """`[D, d_r]`."""

    spread: float
    """Of the product of two estimates of what is moved of r, for a latent independent of r."""

    @classmethod
    def of(cls, covariance: Tensor, own: slice, other: slice, ridge: float) -> _Effects:
        across = covariance[own, other]
        there = ridge_regression(covariance[own, own], across, ridge)
        back = ridge_regression(covariance[other, other], across.T, ridge)
        home, away = (covariance.new_zeros(len(covariance), len(m)) for m in (there, back))
        home[own] = torch.eye(len(there), dtype=there.dtype)
        home[other] = -back
        away[other] = torch.eye(len(back), dtype=back.dtype) - back @ there
        return cls(home.float(), away.float(), (away.T @ covariance @ away).norm().item())


def _moved(moments: LatentMoments, some: Tensor, effects: Sequence[_Effects]) -> Tensor:
    """How far latents move the other sources' own part, relative to their own's, squared.

    Covariances are with `z * (z >= level)`, where level is half of the latent's mean activation,
    weighted by itself: `sum(z^2) / sum(z) / 2`. Latents also fire a little where what they stand
    for is absent, and over many pairs what happens to be there would add up. From what they move
    of others, three standard errors of what chance does are taken. `[1 + K, l]`.
    """
    sizes = moments.fold_pairs
    vectors = moments.products("present_cross", some)
    variance = moments.variances("present_cross")[:, some]
    folds = max(int((sizes > 0).sum()), 2)
    chance = (2 * folds / (folds - 1)) ** 0.5 / max(moments.pairs, 1)
    result = torch.full_like(variance, -torch.inf)
    for effect in effects:
        away = squared_lengths(vectors @ effect.away, sizes)
        away -= ERRORS * chance * effect.spread * variance
        home = squared_lengths(vectors @ effect.home, sizes)
        result = torch.maximum(result, away / home.clamp_min(1e-30))
    return result.clamp(-1e6, 1e6)
