"""How B's activations differ from A's at the same pairs: as they are, or beside a linear map.

n pairs with activations, D_a and D_b widths, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...crosscoders.rdfc import ridge_regression
from ...crosscoders.shared_basis import LEAST_R2
from ...store.normalization import within_norm
from ..residuals import Moments, identity_r2
from .reading import Reading
from .text_scores import PairValues

HALVES = 2
RIDGE = 1e-3
"""Penalty of the map, as a multiple of the mean variance of what it reads."""

AT_ONCE = 2**13


@dataclass(frozen=True)
class _Map:
    """What is taken off b for a: `means[1] + (a - means[0]) @ weights`."""

    means: tuple[Tensor, Tensor]
    weights: Tensor


@dataclass(frozen=True)
class Difference:
    """B - A, or B - R(A), of some pairs without outliers."""

    activations: list[Tensor]
    """Raw, `[n, D_s]` of A and B."""

    inside: Tensor
    """Which of the reading's kept pairs these are, `[n]`."""

    text: Tensor
    """The text of each, numbered from 0 on, `[n]`."""

    numbers: Tensor
    """The texts' numbers, `[T]`."""

    maps: list[_Map] | None
    """One for each half of the texts, of the other half; None where both share a basis."""

    why: str

    def __len__(self) -> int:
        return len(self.text)

    @property
    def width(self) -> int:
        return self.activations[1].shape[1]

    def at(self, places: Tensor) -> Tensor:
        """Of the pairs at some places, `[len(places), D_b]` float32."""
        a, b = (x[places].float() for x in self.activations)
        if self.maps is None:
            return b - a
        half, left = self.text[places] % HALVES, torch.empty_like(b)
        for number, one in enumerate(self.maps):
            here = half == number
            left[here] = b[here] - one.means[1] - (a[here] - one.means[0]) @ one.weights
        return left

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Places, and the difference there, of all pairs."""
        for places in torch.arange(len(self)).split(AT_ONCE):
            yield places, self.at(places)

    def norms(self) -> Tensor:
        """Of B's own activations, `[n]`."""
        parts = [x.float().norm(dim=1) for x in self.activations[1].split(AT_ONCE)]
        return torch.cat(parts)

    def relative(self, reading: Reading) -> PairValues:
        """The distance of each pair's activations by the norm of B's own."""
        far = torch.cat([x.norm(dim=1) for _, x in self.chunks()])
        pairs = reading.kept[self.inside]
        return PairValues(
            "activation", pairs, far / self.norms().clamp_min(1e-30), torch.ones(len(far))
        )

    def by_text(self, values: Tensor) -> Tensor:
        """Sums `[T, ...]` of values `[n, ...]`."""
        sums = torch.zeros(len(self.numbers), *values.shape[1:], dtype=torch.float64)
        return sums.index_add_(0, self.text, values.double())


def difference_of(reading: Reading, outlier_multiple: float) -> Difference:
    """What differs between the activations of a reading.

    Where one model's activations as they are explain half of the other's variance or more, they
    share a basis. Else each half of the texts is compared with what a ridge map makes of it that
    was fitted on the other half.
    """
    inside = within_norm(reading.activations, outlier_multiple).nonzero()[:, 0]
    a, b = (x[inside] for x in reading.activations)
    of_pair = reading.notes.text_id[reading.kept[inside]]
    numbers, text = of_pair.unique(return_inverse=True)
    width = a.shape[1]
    moments = [Moments(width + b.shape[1], torch.device("cpu")) for _ in range(HALVES)]
    for places in torch.arange(len(text)).split(AT_ONCE):
        x, half = torch.cat([a[places], b[places]], 1).float(), text[places] % HALVES
        for number, one in enumerate(moments):
            one.update(x[half == number])
    found = (inside, text, numbers)
    r2 = 0.0
    if b.shape[1] == width:
        covariance = (moments[0] + moments[1]).covariance
        r2 = identity_r2(covariance, slice(width), slice(width, None))
    if r2 >= LEAST_R2:
        why = f"as they are: both share a basis (R2 of the identity {r2:.2f})"
        return Difference([a, b], *found, None, why)
    maps = []
    for one in reversed(moments):
        covariance, mean = one.covariance, one.mean.float()
        weights = ridge_regression(covariance[:width, :width], covariance[:width, width:], RIDGE)
        maps.append(_Map((mean[:width], mean[width:]), weights.float()))
    why = "beside what a linear map of A's says, fitted on the other half of the texts"
    return Difference([a, b], *found, maps, why)
