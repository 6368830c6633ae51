"""What a source's activations have that the others do not tell: residuals, their maps, whitening.

N pairs, S sources, D width of one source, d_in the sum of the widths. Activations are normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..crosscoders.rdfc import ridge_regression
from ..crosscoders.shared_basis import LEAST_R2, smallest_r2

FLOOR = 0.05
"""Directions with less than this share of a residual's mean variance are not made any larger."""

NOTHING = 1e-6
"""Nor are those with less than this share of the source's own mean variance."""


class Moments:
    """First and second moments of some columns, in float64; they add up."""

    def __init__(self, width: int, device: torch.device):
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, x: Tensor) -> None:
        """Add rows `[n, width]`."""
        self.count += len(x)
        self.sum += x.double().sum(0)
        self.products += (x.T @ x).double()

    def __add__(self, other: Moments) -> Moments:
        total = Moments(len(self.sum), self.sum.device)
        total.count = self.count + other.count
        total.sum, total.products = self.sum + other.sum, self.products + other.products
        return total

    @property
    def mean(self) -> Tensor:
        return self.sum / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        mean = self.mean
        return self.products / max(self.count, 1) - mean.outer(mean)


@dataclass(frozen=True)
class Prediction:
    """What is taken from a source: another one as it is, or what all others predict of it."""

    source: int
    reference: int | None
    """The source that shares its basis; None where a ridge map predicts it from all others."""

    weights: Tensor
    """From normalised x `[d_in]` to the residual, `[d_in, D]`."""

    scale: float
    """What makes the reference's normalised activations the source's; 1 of a ridge map."""

    why: str
    """Which map it is and why, in words."""

    columns: slice
    reference_columns: slice | None
    """Where the reference is in x; behind the sources if it is none of them."""

    @property
    def outside(self) -> bool:
        """Whether the reference is none of the sources, but a model in the source's place."""
        return self.reference is None and self.reference_columns is not None

    def residual(self, x: Tensor) -> Tensor:
        """Of normalised x `[n, d_in]`, not centred, `[n, D]`."""
        if self.reference_columns is None:
            return x @ self.weights
        return x[:, self.columns] - self.scale * x[:, self.reference_columns]

    def predicted(self, directions: Tensor, origin: slice) -> Tensor:
        """What directions `[L, D_r]` of another source become in this one, `[L, D]`."""
        return -directions @ self.weights[origin].to(directions)


def beside_prediction(crosscoder: Crosscoder, source: int) -> Prediction:
    """What is taken from a source beside another model in its place, which stands behind x."""
    columns, d_in = crosscoder.columns[source], crosscoder.d_in
    width = columns.stop - columns.start
    weights = torch.zeros(d_in, width, device=crosscoder.device)
    weights[columns] = torch.eye(width, device=crosscoder.device)
    why = "the reference has its base or fine-tune on the same pairs: the difference as it is"
    return Prediction(source, None, weights, 1.0, why, columns, slice(d_in, d_in + width))


def predictions(
    crosscoder: Crosscoder, moments: Moments, ridge: float, by_maps: bool = False
) -> list[Prediction]:
    """What predicts each source, from the moments of normalised pairs.

    Two sources that share a basis are compared as they are, and the second of them alone: the
    first's residual is the same one, turned round. With `by_maps` all are predicted by ridge maps.
    Raises ValueError for fewer than two sources.
    """
    columns, covariance = crosscoder.columns, moments.covariance
    if len(columns) < 2:
        raise ValueError("A difference needs two sources; the crosscoder has one.")
    references = {} if by_maps else _references(crosscoder, covariance)
    found = []
    for s, own in enumerate(columns):
        if any(r == s for r, _ in references.values()) and s not in references:
            continue
        weights = covariance.new_zeros(len(covariance), own.stop - own.start)
        weights[own] = torch.eye(own.stop - own.start, dtype=weights.dtype, device=weights.device)
        if s in references:
            r, r2 = references[s]
            scale = float(crosscoder.factors[s] / crosscoder.factors[r])
            weights[columns[r]] = -scale * weights[own]
            why = f"both share a basis (R2 of the identity {r2:.2f}): the difference as it is"
            found.append(Prediction(s, r, weights.float(), scale, why, own, columns[r]))
            continue
        rest = torch.ones(len(covariance), dtype=torch.bool, device=weights.device)
        rest[own] = False
        weights[rest] = -ridge_regression(
            covariance[rest][:, rest], covariance[rest][:, own], ridge
        )
        why = "no shared basis: what a linear map from the others leaves"
        found.append(Prediction(s, None, weights.float(), 1.0, why, own, None))
    return found


def _references(crosscoder: Crosscoder, covariance: Tensor) -> dict[int, tuple[int, float]]:
    """The first source before each that shares its basis, and the R2 of the identity."""
    found: dict[int, tuple[int, float]] = {}
    for s in range(1, len(crosscoder.columns)):
        for r in range(s):
            if crosscoder.d_sources[r] == crosscoder.d_sources[s]:
                both = (crosscoder.factors[r].double(), crosscoder.factors[s].double())
                r2 = identity_r2(covariance, crosscoder.columns[r], crosscoder.columns[s], both)
                if r2 >= LEAST_R2:
                    found[s] = (r, r2)
                    break
    return found


def identity_r2(
    covariance: Tensor, a: slice, b: slice, factors: tuple[Tensor | float, Tensor | float] = (1, 1)
) -> float:
    """How well two sources' raw activations, the columns `a` and `b` of a covariance divided by
    their factors, tell each other as they are."""
    f_a, f_b = factors
    first, second = (covariance[c, c].diagonal() / f**2 for c, f in ((a, f_a), (b, f_b)))
    difference = first + second - 2 * covariance[a, b].diagonal() / (f_a * f_b)
    return smallest_r2([first, second], [difference, difference])


@dataclass(frozen=True)
class Residual:
    """A source's residual, centred and whitened."""

    prediction: Prediction
    mean: Tensor
    """Of the residual, `[D]`."""

    whitening: Tensor
    """Symmetric, `[D, D]`."""

    unwhitening: Tensor
    """Its inverse, `[D, D]`."""

    left: float
    """Share of the source's variance that the residual has; of what a map leaves, by its degrees of
    freedom, as few pairs fit a map that tells nothing."""

    variance: float
    """Of the residual, all dimensions together."""

    @property
    def source(self) -> int:
        return self.prediction.source

    @classmethod
    def fit(cls, prediction: Prediction, moments: Moments, whole: Tensor) -> Residual:
        """From the moments of the residual, and the covariance `[D, D]` of its source."""
        covariance = moments.covariance
        variances, directions = torch.linalg.eigh(covariance)
        least = FLOOR * variances.clamp_min(0).mean() + NOTHING * whole.diagonal().mean()
        roots = variances.clamp_min(least.clamp_min(1e-30)).sqrt()
        variance = float(covariance.diagonal().sum())
        mapped = 0 if prediction.reference_columns else len(prediction.weights) - len(whole)
        freedom = moments.count / max(moments.count - mapped - 1, 1)
        return cls(
            prediction,
            moments.mean.float(),
            ((directions / roots) @ directions.T).float(),
            ((directions * roots) @ directions.T).float(),
            freedom * variance / float(whole.diagonal().sum().clamp_min(1e-30)),
            variance,
        )

    def apply(self, x: Tensor) -> Tensor:
        """White residual of normalised x `[n, d_in]`, `[n, D]`."""
        return (self.prediction.residual(x) - self.mean) @ self.whitening

    def unwhitened(self, white: Tensor) -> Tensor:
        """White vectors `[..., D]` as changes of the source's normalised activations."""
        return white @ self.unwhitening.to(white)
