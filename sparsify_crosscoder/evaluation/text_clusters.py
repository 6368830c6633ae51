"""Means whose error is known though pairs of one text are alike: sums by text, in two halves.

Of what is found in one half of the texts it is asked in the other how far pairs move along it. Two
halves asked of each other give one answer, not two: each is the product of the same two means. So
their t values are averaged, and not taken together.

L things measured, T texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HALVES = 2


class TextSums:
    """Sums of values by thing and text, `[L, T]`, of which few entries are not 0."""

    def __init__(self, size: int, num_texts: int):
        self.size, self.num_texts = size, num_texts
        self._keys: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, things: Tensor, texts: Tensor, values: Tensor) -> None:
        """Add values `[E]` of some things in some texts."""
        keys, places = (things.long() * self.num_texts + texts).unique(return_inverse=True)
        self._keys.append(keys)
        self._sums.append(torch.bincount(places, values.double(), len(keys)))
        self._counts.append(torch.bincount(places, minlength=len(keys)))

    def means(self, half_of_text: Tensor) -> list[ClusteredMean]:
        """The mean of every thing, over the texts of each half by itself."""
        if not self._keys:
            return [ClusteredMean.of(*torch.zeros(4, self.size).double()) for _ in range(HALVES)]
        keys, places = torch.cat(self._keys).unique(return_inverse=True)
        sums = torch.bincount(places, torch.cat(self._sums), len(keys))
        counts = torch.bincount(places, torch.cat(self._counts).double(), len(keys))
        things = keys.div(self.num_texts, rounding_mode="floor")
        half = half_of_text[keys % self.num_texts]
        return [
            self._means(things[half == h], sums[half == h], counts[half == h])
            for h in range(HALVES)
        ]

    def _means(self, things: Tensor, sums: Tensor, counts: Tensor) -> ClusteredMean:
        def total(values: Tensor) -> Tensor:
            return torch.bincount(things, values, self.size)

        number, count = total(sums), total(counts)
        mean = number / count.clamp_min(1)
        spread = total((sums - mean[things] * counts).square())
        return ClusteredMean.of(mean, count, spread, total(counts.square()))


@dataclass(frozen=True)
class ClusteredMean:
    """A mean of each of L things over pairs that texts cluster, `[L]` everywhere, float64."""

    mean: Tensor
    count: Tensor
    """Pairs."""

    error: Tensor
    """Standard error; infinite where fewer than two texts, or what counts as much, have it."""

    texts: Tensor
    """How many texts of equal length would tell as much: `count^2` by the sum of squares."""

    @classmethod
    def of(cls, mean: Tensor, count: Tensor, spread: Tensor, squares: Tensor) -> ClusteredMean:
        texts = count.square() / squares.clamp_min(1)
        error = (spread * texts / (texts - 1).clamp_min(1e-9)).sqrt() / count.clamp_min(1)
        return cls(mean, count, torch.where(texts > 1.5, error, torch.inf), texts)

    @property
    def t(self) -> Tensor:
        return torch.where(self.error.isinf(), 0.0, self.mean / self.error.clamp_min(1e-30))


@dataclass(frozen=True)
class Tested:
    """What two halves say of each other, `[L]` everywhere, float64."""

    effect: Tensor
    """Mean over the pairs of both."""

    t: Tensor
    """Mean of both t values."""

    p_value: Tensor
    """Of no effect or a negative one."""

    @classmethod
    def of(cls, halves: list[ClusteredMean]) -> Tested:
        from scipy import stats

        first, second = halves
        count = (first.count + second.count).clamp_min(1)
        effect = (first.mean * first.count + second.mean * second.count) / count
        t = (first.t + second.t) / 2
        freedom = (torch.minimum(first.texts, second.texts) - 1).clamp_min(0.5)
        alone = first.error.isinf() | second.error.isinf()
        t = torch.where(alone, 0.0, t)
        p_value = torch.from_numpy(stats.t.sf(t.numpy(), freedom.numpy()))
        return cls(effect, t, torch.where(alone, 1.0, p_value))

    @property
    def error(self) -> Tensor:
        """Standard error of the effect; 0 where there is no effect to have one."""
        return torch.where(self.t > 0, self.effect / self.t.clamp_min(1e-30), 0.0)


def q_values(p_values: Tensor) -> Tensor:
    """Benjamini and Hochberg's: the false share of all that are as good or better, `[L]`."""
    from scipy import stats

    if not len(p_values):
        return p_values
    found = stats.false_discovery_control(p_values.clamp(0, 1).numpy(), method="bh")
    return torch.from_numpy(np.asarray(found))
