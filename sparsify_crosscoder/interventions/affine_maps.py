"""Two affine maps between normalised sources: closed form, joint training, and how well they fit.

N pairs, D_0 and D_1 the widths; map 0 leads from the first source to the second, map 1 back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders.rdfc import ridge_regression
from ..store.normalization import estimate_normalization, within_norm
from ..store.stream import ActivationStream, every_pair
from ..training.metrics import ErrorStatistics, fve

BATCH_PAIRS = 4096


class AffineMap(NamedTuple):
    """`x @ weight.T + bias`."""

    weight: Tensor
    """[D_out, D_in]"""

    bias: Tensor
    """[D_out]"""

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def to(self, device: torch.device | str) -> AffineMap:
        """The map in float32 on a device."""
        return AffineMap(*(part.to(device, torch.float32) for part in self))


@dataclass
class Normalization:
    """What brings two sources onto one scale: `(x - mean) * factor`."""

    means: list[Tensor]
    factors: list[float]

    @classmethod
    def estimate(cls, sample: Sequence[Tensor]) -> Normalization:
        """From raw `[n, D_s]` without outliers. Raises ValueError if a source is constant."""
        means, factors = estimate_normalization(sample)
        return cls(means, factors.tolist())

    def apply(self, raw: Sequence[Tensor]) -> list[Tensor]:
        return [
            (x.float() - mean) * factor
            for x, mean, factor in zip(raw, self.means, self.factors, strict=True)
        ]

    def fold(self, source: int, normalized: AffineMap) -> AffineMap:
        """The map on raw activations that a map on normalised ones from `source` stands for."""
        other = 1 - source
        means = [mean.cpu().double() for mean in self.means]
        weight, bias = (part.cpu().double() for part in normalized)
        weight = weight * (self.factors[source] / self.factors[other])
        offset = means[other] + bias / self.factors[other]
        return AffineMap(weight, offset - weight @ means[source]).to("cpu")


def without_outliers(
    raw: Sequence[Tensor], sources: Sequence[int], outlier_multiple: float
) -> list[Tensor]:
    """The pairs that training would keep (B.1.4), of raw `[n, D_s]` from sources of these numbers.

    Raises ValueError if an activation is not finite.
    """
    for x, number in zip(raw, sources, strict=True):
        if not x.isfinite().all():
            raise ValueError(
                f"Source {number} has activations that are NaN or infinite. Its model's precision "
                f"is the usual cause (try float32), or a damaged store."
            )
    keep = within_norm(raw, outlier_multiple)
    return [x[keep] for x in raw]


class NormalizedPairs:
    """Pairs of two of a stream's sources, normalised, outliers left out as in training (B.1.4)."""

    def __init__(
        self,
        stream: ActivationStream,
        sources: Sequence[int],
        normalization: Normalization,
        outlier_multiple: float,
        device: torch.device | str = "cpu",
    ):
        self.stream = stream
        self.sources = sources
        self.normalization = normalization
        self.outlier_multiple = outlier_multiple
        self.device = device
        self.outliers = 0

    def batches(self, first: int, last: int, pairs_per_step: int) -> Iterator[list[Tensor]]:
        """Steps [first, last) of the stream, `[n, D_s]` for the two sources; n may be 0."""
        for batch in self.stream.batches(first, last, pairs_per_step):
            yield self._normalized(batch)

    def once(self, desc: str) -> Iterator[list[Tensor]]:
        """Every pair once."""
        self.outliers = 0
        steps = -(-self.stream.num_pairs // BATCH_PAIRS)
        batches = every_pair(self.stream, BATCH_PAIRS)
        for batch in tqdm(batches, desc=desc, total=steps, unit="batch"):
            yield self._normalized(batch)

    def _normalized(self, batch: Sequence[Tensor]) -> list[Tensor]:
        raw = [batch[s].to(self.device) for s in self.sources]
        kept = without_outliers(raw, self.sources, self.outlier_multiple)
        self.outliers += len(raw[0]) - len(kept[0])
        return self.normalization.apply(kept)


def closed_form(pairs: NormalizedPairs, ridge: float) -> tuple[list[AffineMap], int]:
    """Least-squares maps both ways from one pass in float64, and the number of pairs it used.

    `ridge` is a multiple of the mean variance of what a map reads.
    """
    device = torch.device(pairs.device)
    device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    count, total, products = 0, torch.zeros(1), torch.zeros(1, 1)
    for batch in pairs.once("Moments"):
        x = torch.cat(batch, 1).to(device).double()
        count += len(x)
        total = total.to(x) + x.sum(0)
        products = products.to(x) + x.T @ x
    mean = total / count
    covariance = products / count - mean.outer(mean)
    width = len(pairs.normalization.means[0])
    parts = slice(0, width), slice(width, None)
    maps = []
    for read, written in (parts, parts[::-1]):
        solved = ridge_regression(covariance[read, read], covariance[read, written], ridge)
        bias = mean[written] - mean[read] @ solved
        maps.append(AffineMap(solved.T.contiguous(), bias).to(pairs.device))
    return maps, count


def random_maps(widths: Sequence[int], seed: int, device: torch.device | str) -> list[AffineMap]:
    """Maps that keep the length of what they read on average, with biases of 0."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for read, written in (widths, widths[::-1]):
        weight = torch.randn(written, read, generator=generator) / written**0.5
        maps.append(AffineMap(weight.to(device), torch.zeros(written, device=device)))
    return maps


def stitching_loss(
    maps: Sequence[AffineMap], batch: Sequence[Tensor], inversion_weight: float
) -> Tensor:
    """Both maps' squared errors, and `inversion_weight` times those of both round trips (B.5).

    Summed over dimensions, averaged over pairs, and divided by the mean width, which makes one
    term 1 where a normalised source is not explained at all.
    """
    there = [maps[s](batch[s]) for s in (0, 1)]
    errors = [there[s] - batch[1 - s] for s in (0, 1)]
    weights = [1.0, 1.0]
    if inversion_weight:
        errors += [maps[1 - s](there[s]) - batch[s] for s in (0, 1)]
        weights += [inversion_weight, inversion_weight]
    mean_width = (batch[0].shape[1] + batch[1].shape[1]) / 2
    squares = [w * e.square().sum() for w, e in zip(weights, errors, strict=True)]
    return torch.stack(squares).sum() / (len(batch[0]) * mean_width)


def train(
    maps: Sequence[AffineMap],
    pairs: NormalizedPairs,
    *,
    inversion_weight: float,
    learning_rate: float,
    steps: int,
    pairs_per_step: int,
) -> list[AffineMap]:
    """Train both maps together by Adam, the learning rate falling linearly to 0.

    Raises ValueError where the loss is no longer finite.
    """
    trained = [AffineMap(*(part.clone().requires_grad_() for part in one)) for one in maps]
    optimizer = torch.optim.Adam([part for one in trained for part in one], lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with tqdm(total=steps, desc="Stitching", unit="step") as bar:
        for batch in pairs.batches(0, steps, pairs_per_step):
            if len(batch[0]):
                loss = stitching_loss(trained, batch, inversion_weight)
                if not math.isfinite(value := loss.item()):
                    raise ValueError(
                        f"The loss of the stitching is {value} after {bar.n} steps; lower the "
                        f"learning rate ({learning_rate:g})."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            decay.step()
            bar.update()
    return [AffineMap(*(part.detach() for part in one)) for one in trained]


class Fit(NamedTuple):
    """How well maps do on some pairs, each list by the source that is read."""

    maps: list[ErrorStatistics]
    """Source 0 to 1, and 1 to 0."""

    round_trips: list[ErrorStatistics]
    """0 to 1 to 0, and 1 to 0 to 1."""


@torch.no_grad()
def evaluate(maps: Sequence[Sequence[AffineMap]], pairs: NormalizedPairs) -> list[Fit]:
    """The errors of several pairs of maps over all pairs of a stream."""
    widths = [len(mean) for mean in pairs.normalization.means]
    fits = [
        Fit([ErrorStatistics(d) for d in widths[::-1]], [ErrorStatistics(d) for d in widths])
        for _ in maps
    ]
    for batch in pairs.once("Evaluating"):
        for both, fit in zip(maps, fits, strict=True):
            for s in (0, 1):
                there = both[s](batch[s])
                fit.maps[s].update(batch[1 - s], there)
                fit.round_trips[s].update(batch[s], both[1 - s](there))
    return fits


def compare(sources: Sequence[int], trained: Fit, exact: Fit) -> dict[str, Any]:
    """R2 of both maps and both round trips, trained and in closed form, as JSON values."""
    numbers = list(sources)
    directions, round_trips = [], []
    for s in (0, 1):
        ends = {"from": numbers[s], "to": numbers[1 - s]}
        directions.append({**ends, **_scores(trained.maps[s], exact.maps[s])})
        ends = {"source": numbers[s], "through": numbers[1 - s]}
        round_trips.append({**ends, **_scores(trained.round_trips[s], exact.round_trips[s])})
    return {
        "directions": directions,
        "round_trips": round_trips,
        "held_out_pairs": trained.maps[0].count,
    }


def _scores(trained: ErrorStatistics, exact: ErrorStatistics) -> dict[str, Any]:
    scores: dict[str, Any] = {"r2": fve([trained]), "r2_closed_form": fve([exact])}
    scores["difference"] = scores["r2"] - scores["r2_closed_form"]
    for name, one in (("", trained), ("_closed_form", exact)):
        scores[f"r2_without_top5{name}"] = fve([one], without_top=5)
    for name, one in (("", trained), ("_closed_form", exact)):
        scores[f"r2_per_dimension{name}"] = [
            1 - e / v if v > 0 else None
            for e, v in zip(one.errors.tolist(), one.deviations.tolist(), strict=True)
        ]
    return {name: None if value != value else value for name, value in scores.items()}
