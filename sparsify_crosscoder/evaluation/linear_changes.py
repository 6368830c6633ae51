"""Differences that no latent is needed for: a shift of the mean, and a linear change of the basis.

Both are found where two sources share a basis, so that their difference d is taken as it is. What
is found in one half of the texts is measured in the other.

D width of both sources. Activations are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..crosscoders.rdfc import ridge_regression
from .latent_shifts import CodedPairs
from .residuals import Moments, Prediction, Residual
from .text_clusters import HALVES, Tested, TextSums

CHANGES = 3
"""Singular directions of a linear change that are looked at."""

SAME_DIRECTION = 0.7
"""Cosine of what both halves of the texts find, from which it is one thing."""


@dataclass(frozen=True)
class FittedResidual:
    """A residual, and the moments of both halves of the texts that it was fitted on."""

    residual: Residual
    halves: list[Moments]
    """Of the reference's activations and the residual side by side, `[2 D]`, or of the residual
    alone `[D]` where there is no reference."""

    offset: Tensor
    """What the residual's mean is in raw activations beyond that of the normalised, `[D]`."""


@dataclass(frozen=True)
class LinearChange:
    """A shift of the mean or a component of a linear change of one residual."""

    kind: str
    """"mean" or "map"."""

    residual: int
    own: float
    """Share of the mean square of the difference that it accounts for."""

    effect: float
    """Of a mean, its length by the standard deviation of the residual along it; of a map, the share
    of the variance along the direction it writes that is linear in what it reads."""

    t: float
    p_value: float
    direction: Tensor
    """What the source has more of, normalised, `[D]`: of a map for one standard deviation of what
    is read."""

    reads: Tensor | None = None
    """Of a map, the weights with which it reads the reference, normalised, `[D]`."""


@torch.no_grad()
def fit_residuals(found: CodedPairs, predicted: Sequence[Prediction]) -> list[FittedResidual]:
    """The residuals of some predictions, from one reading of the pairs."""
    device, crosscoder = found.crosscoder.device, found.crosscoder
    sizes = [_width(one) for one in predicted]
    moments = [[Moments(size, device) for _ in range(HALVES)] for size in sizes]
    half_of_pair = found.half_of_text[found.texts]
    for here, x, _ in found.batches():
        half = half_of_pair[here].to(device)
        for one, of_one in zip(predicted, moments, strict=True):
            values = one.residual(x)
            if one.reference_columns is not None:
                values = torch.cat([x[:, one.reference_columns], values], 1)
            for h in range(HALVES):
                of_one[h].update(values[half == h])
    fitted = []
    for one, halves in zip(predicted, moments, strict=True):
        width = one.columns.stop - one.columns.start
        together = _last(halves[0] + halves[1], width)
        whole = found.moments.covariance[one.columns, one.columns]
        offset = torch.zeros(width, device=device)
        if one.reference is not None and one.reference_columns is not None:
            apart = crosscoder.mean[one.columns] - crosscoder.mean[one.reference_columns]
            offset = (apart * crosscoder.factors[one.source]).float()
        fitted.append(FittedResidual(Residual.fit(one, together, whole), halves, offset))
    return fitted


def _width(one: Prediction) -> int:
    read = one.reference_columns
    return one.columns.stop - one.columns.start + (0 if read is None else read.stop - read.start)


def _last(moments: Moments, width: int) -> Moments:
    part = Moments(width, moments.sum.device)
    part.count, part.sum = moments.count, moments.sum[-width:]
    part.products = moments.products[-width:, -width:]
    return part


@dataclass(frozen=True)
class _Component:
    """One of a linear change, as one half of the texts has it."""

    reads: Tensor
    writes: Tensor
    size: float
    """Standard deviation of what is read, weighted."""


@torch.no_grad()
def linear_changes(
    found: CodedPairs, fitted: Sequence[FittedResidual], ridge: float
) -> list[LinearChange]:
    """The shifts and linear changes of all residuals of a shared basis."""
    changes = []
    for number, one in enumerate(fitted):
        if one.residual.prediction.reference_columns is not None:
            changes.append(_mean(found, number, one))
            changes += _maps(found, number, one, ridge)
    return changes


def _mean(found: CodedPairs, number: int, one: FittedResidual) -> LinearChange:
    residual, width = one.residual, len(one.offset)
    means = [half.mean[-width:] + one.offset.double() for half in one.halves]
    units = [F.normalize(mean, dim=0).float() for mean in means]
    sums = TextSums(1, found.num_texts)
    half_of_pair = found.half_of_text[found.texts]
    for here, x, _ in found.batches():
        values = residual.prediction.residual(x) + one.offset
        half = half_of_pair[here]
        along = torch.stack([(values @ unit).cpu() for unit in reversed(units)])
        told = along.gather(0, half[None])[0]
        sums.add(torch.zeros(len(told), dtype=torch.long), found.texts[here], told)
    tested = Tested.of(sums.means(found.half_of_text))
    square = float((means[0] @ means[1]).clamp_min(0))
    mean = (residual.mean + one.offset).float()
    unit = F.normalize(mean, dim=0)
    spread = float((residual.unwhitened(unit[None])[0]).norm())
    own = square / max(square + residual.variance, 1e-30)
    effect = float(mean.norm()) / max(spread, 1e-30)
    return LinearChange("mean", number, own, effect, *_first(tested), mean.cpu())


def _first(tested: Tested) -> tuple[float, float]:
    return float(tested.t[0]), float(tested.p_value[0])


def _maps(found: CodedPairs, number: int, one: FittedResidual, ridge: float) -> list[LinearChange]:
    """The largest components that both halves of the texts find."""
    width = len(one.offset)
    halves = [_components(half.covariance, width, ridge) for half in one.halves]
    pairs = []
    for first in halves[0]:
        alike = [float(first.writes @ other.writes) for other in halves[1]]
        best = max(range(len(alike)), key=lambda i: abs(alike[i]))
        second = halves[1][best]
        if abs(alike[best]) >= SAME_DIRECTION and not any(second is used for _, used in pairs):
            pairs.append((first, second))
    if not pairs:
        return []
    told = [_gain(one.halves, pair, width) for pair in pairs]
    tests = _test_maps(found, one, pairs)
    result = []
    for i, (first, second) in enumerate(pairs):
        gains = told[i]
        sign = 1.0 if first.writes @ second.writes > 0 else -1.0
        writes = F.normalize(first.writes + sign * second.writes, dim=0)
        reads = (first.reads + sign * second.reads) / 2
        own = max(gains[0] / max(one.residual.variance, 1e-30), 0.0)
        direction = (writes * (first.size + second.size) / 2).float().cpu()
        t, p_value = float(tests.t[i]), float(tests.p_value[i])
        result.append(
            LinearChange("map", number, own, gains[1], t, p_value, direction, reads.float().cpu())
        )
    return result


def _gain(halves: list[Moments], pair: tuple[_Component, ...], width: int) -> tuple[float, float]:
    """Variance that each half's component explains of the other, and the share along it."""
    gains, shares = [], []
    for component, tested in zip(pair, reversed(halves), strict=True):
        covariance = tested.covariance
        reads, writes = component.reads, component.writes
        gain = 2 * reads @ covariance[:-width, -width:] @ writes
        gain -= reads @ covariance[:-width, :-width] @ reads
        gains.append(float(gain))
        along = writes @ covariance[-width:, -width:] @ writes
        shares.append(float(gain / along.clamp_min(1e-30)))
    return sum(gains) / len(gains), sum(shares) / len(shares)


def _components(covariance: Tensor, width: int, ridge: float) -> list[_Component]:
    read, across = covariance[:-width, :-width], covariance[:-width, -width:]
    weights = ridge_regression(read, across, ridge)
    variances, directions = torch.linalg.eigh(read)
    root = (directions * variances.clamp_min(0).sqrt()) @ directions.T
    _, sizes, written = torch.linalg.svd(root @ weights)
    return [
        _Component(weights @ writes, writes, float(size))
        for size, writes in zip(sizes[:CHANGES], written[:CHANGES], strict=True)
    ]


def _test_maps(
    found: CodedPairs, one: FittedResidual, pairs: list[tuple[_Component, _Component]]
) -> Tested:
    """What each half's components explain of the other half, text by text."""
    device, prediction = found.crosscoder.device, one.residual.prediction
    columns = prediction.reference_columns
    assert columns is not None
    centre = (one.halves[0] + one.halves[1]).mean[: -len(one.offset)].float()
    reads = [torch.stack([p[h].reads for p in pairs], 1).float() for h in range(HALVES)]
    writes = [torch.stack([p[h].writes for p in pairs], 1).float() for h in range(HALVES)]
    sums = TextSums(len(pairs), found.num_texts)
    half_of_pair = found.half_of_text[found.texts]
    for here, x, _ in found.batches():
        half = half_of_pair[here].to(device)
        left = prediction.residual(x) - one.residual.mean
        gains = x.new_zeros(len(x), len(pairs))
        for h in range(HALVES):
            mine, other = half == h, 1 - h
            written = left[mine] @ writes[other]
            predicted = (x[mine][:, columns] - centre) @ reads[other]
            gains[mine] = 2 * written * predicted - predicted.square()
        texts = found.texts[here].repeat_interleave(len(pairs))
        things = torch.arange(len(pairs)).repeat(len(x))
        sums.add(things, texts, gains.cpu().reshape(-1))
    return Tested.of(sums.means(found.half_of_text))
