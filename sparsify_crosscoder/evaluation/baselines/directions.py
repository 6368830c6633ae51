"""Directions in which B's activations differ from A's, each with the texts that show it.

n pairs, T texts, D width of B, F directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..difference_components import COMPONENTS
from ..residuals import Moments
from .coder import CoderConfig, difference_coder
from .difference import AT_ONCE, Difference
from .found import TOP_TEXTS, Found
from .reading import Reading
from .token_gains import SURE

FIRST_TOKENS = 5
"""Pairs of a text that are its first tokens."""

LISTED_LATENTS = 20

Read = Callable[[Tensor], list[tuple[str, str]]]
"""Gives what directions `[F, D]` promote, in words, and a passage of each."""


@dataclass(frozen=True)
class Direction:
    """One direction of a method."""

    vector: Tensor
    """Of length 1, to the side that has more of it, `[D]`."""

    score: float
    interval: tuple[float, float] | None
    texts: list[int]


def mean_directions(reading: Reading, found: Difference) -> dict[str, list[Direction]]:
    """The mean difference over the text, and on its first tokens, by B's own norm there.

    Beside a map there is no mean over the text: the map has it.
    """
    norms = found.norms()
    first = _first_tokens(reading, found)
    asked = {"first": first} if found.maps is not None else {"mean": None, "first": first}
    directions: dict[str, list[Direction]] = {}
    for method, only in asked.items():
        chosen = torch.arange(len(found)) if only is None else only
        if not len(chosen):
            continue
        total = torch.zeros(found.width, dtype=torch.float64)
        for places in chosen.split(AT_ONCE):
            total += found.at(places).double().sum(0)
        vector = F.normalize(total, dim=0).float()
        along = torch.cat([found.at(places) @ vector for places in chosen.split(AT_ONCE)])
        values, weights = torch.zeros(len(found)), torch.zeros(len(found))
        values[chosen], weights[chosen] = along, norms[chosen]
        summed = found.by_text(values)
        directions[method] = [_direction(found, vector, summed, found.by_text(weights), summed)]
    return directions


def components(found: Difference) -> list[Direction]:
    """Principal components, each to the side on which single pairs are further out."""
    moments = Moments(found.width, torch.device("cpu"))
    for _, x in found.chunks():
        moments.update(x)
    variances, vectors = torch.linalg.eigh(moments.covariance)
    count = min(COMPONENTS, int((variances > 0).sum()))
    vectors, mean = vectors.flip(1)[:, :count].float(), moments.mean.float()
    sizes = torch.zeros(len(found))
    along = torch.zeros(len(found), count)
    for places, x in found.chunks():
        sizes[places] = (x - mean).square().sum(1)
        along[places] = (x - mean) @ vectors
    side = along.double().pow(3).sum(0).sign().float()
    along *= side
    squares, shown = found.by_text(along.square()), found.by_text(along.clamp_min(0))
    weights = found.by_text(sizes)
    return [
        _direction(found, side[i] * vectors[:, i], squares[:, i], weights, shown[:, i])
        for i in range(count)
    ]


def coder_latents(found: Difference, config: CoderConfig) -> list[Direction]:
    """The latents of a small coder that have most energy."""
    fired = difference_coder(found.at, len(found), config)
    energy = torch.zeros(len(found))
    energy.index_add_(0, fired.pairs, fired.activations.square().float())
    weights = found.by_text(energy)
    directions = []
    for latent in fired.order[:LISTED_LATENTS]:
        here = fired.latents == latent
        if not here.any():
            continue
        values = torch.zeros(len(found))
        values[fired.pairs[here]] = fired.activations[here].float()
        squares, shown = found.by_text(values.square()), found.by_text(values)
        directions.append(_direction(found, fired.directions[latent], squares, weights, shown))
    return directions


def listed_directions(method: str, found: Sequence[Direction], read: Read) -> list[Found]:
    """Directions that are not 0 as entries, in words."""
    some = [one for one in found if one.score > 0]
    said = read(torch.stack([one.vector for one in some])) if some else []
    return [
        Found(rank, "direction", method, 1, one.score, one.interval, *words, one.texts)
        for rank, (one, words) in enumerate(zip(some, said, strict=True), 1)
    ]


def _direction(
    found: Difference, vector: Tensor, values: Tensor, weights: Tensor, shown: Tensor
) -> Direction:
    """Of sums by text `[T]`: its score is the ratio of two, its texts are the first by a third."""
    kept = weights > 0
    count, total = int(kept.sum()), float(weights.sum())
    score = float(values.sum()) / max(total, 1e-30)
    interval = None
    if count > 1:
        beyond = float((values - score * weights).square().sum())
        wide = SURE * (beyond * count / (count - 1)) ** 0.5 / max(total, 1e-30)
        interval = (score - wide, score + wide)
    means = shown / found.by_text(torch.ones(len(found)))
    order = means.argsort(descending=True, stable=True)[:TOP_TEXTS]
    texts = [int(found.numbers[i]) for i in order if means[i] > 0]
    return Direction(vector, score, interval, texts)


def _first_tokens(reading: Reading, found: Difference) -> Tensor:
    """Places of the pairs that are among the first of their texts."""
    text = reading.notes.text_id
    _, counts = text.unique_consecutive(return_counts=True)
    number = torch.arange(len(text)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return (number[reading.kept[found.inside]] < FIRST_TOKENS).nonzero()[:, 0]
