"""Which next tokens one model expects more than another, gathered over a text as it is read.

K beginnings of text that both models know, T texts. Of all texts only sums are held: some vectors
[K], and of every text the beginnings that gain or lose most in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...harvest.common_tokens import CommonTokens
from ...harvest.divergence import divergences

NOTED = 100
"""Beginnings of each text of which it is noted how much they gain or lose."""

SURE = 1.96
"""Standard errors of a 95% interval."""

_LEAST = 1e-12
"""Mean probabilities below are taken for this one."""


class Gain(NamedTuple):
    """A beginning of text that one model expects more often."""

    said: str
    score: float
    """`(p1 - p0) log(p1 / p0)`, its share of the symmetrised KL of the mean distributions, nats."""

    interval: tuple[float, float]
    """95%, over texts."""

    probabilities: tuple[float, float]
    """Mean over all positions of the text, by source 0 and 1."""

    texts: list[int]
    """Where it gains most, or loses most if it does on average, the first of all first."""


class TokenGains:
    """Sums over the positions of texts, which come one text after the other."""

    def __init__(self, common: CommonTokens):
        self.common = common
        self._kl: list[tuple[Tensor, Tensor]] = []
        # Of each text's sums of probability by source and of its positions, three numbers each:
        # their sums over all texts, and those of their products.
        self._sums = torch.zeros(3, len(common), dtype=torch.float64)
        self._products = torch.zeros(3, 3, len(common), dtype=torch.float64)
        self._texts = 0
        self._text: int | None = None
        self._here = torch.zeros(3, len(common))
        self._noted: dict[int, list[tuple[float, int]]] = {}

    def add(self, texts: Tensor, first: Tensor, second: Tensor) -> None:
        """Positions of some texts `[n]`, in order, with both sources' log-probabilities of their
        own tokens `[n, V]`."""
        logs = [self.common.log_probabilities(s, x) for s, x in enumerate((first, second))]
        probabilities = [one.exp() for one in logs]
        if self.common.beginnings is not None:
            self._kl.append(divergences(logs[1], logs[0]))
        numbers, counts = texts.unique_consecutive(return_counts=True)
        start = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number != self._text:
                self._end()
                self._text = number
            for source, one in enumerate(probabilities):
                self._here[source] += one[start : start + count].sum(0).cpu()
            self._here[2] += count
            start += count

    def divergence(self) -> tuple[Tensor, Tensor] | None:
        """KL(1 || 0) and KL(0 || 1) of the beginnings, nats, of all positions that were added; None
        of one vocabulary, where those of the tokens are known."""
        if not self._kl:
            return None
        there, back = zip(*self._kl, strict=True)
        return torch.cat(there), torch.cat(back)

    def first(self, most: int) -> list[Gain]:
        """The beginnings that both models expect most unlike each other, less those that are alike
        to them."""
        self._end()
        if self._texts < 2:
            return []
        positions = self._sums[2, 0]
        p0, p1 = (self._sums[:2] / positions).clamp_min(_LEAST)
        ratio, change = (p1 / p0).log(), p1 - p0
        scores = change * ratio
        # By the delta method, over texts: how the score moves with each text's three sums.
        slopes = torch.stack([-ratio - change / p0, ratio + change / p1])
        slopes = torch.cat([slopes, -(slopes[:1] * p0 + slopes[1:] * p1)])
        spread = torch.einsum("ik,ijk,jk->k", slopes, self._products, slopes).clamp_min(0)
        wide = SURE * (spread * self._texts / (self._texts - 1)).sqrt() / positions
        found = []
        for place in scores.topk(min(most, len(scores))).indices.tolist():
            score, by = float(scores[place]), float(wide[place])
            if score <= 0:
                break
            sign = 1 if float(change[place]) > 0 else -1
            noted = sorted((-sign * by, text) for by, text in self._noted.get(place, []))
            said, both = self.common.said[place], (float(p0[place]), float(p1[place]))
            texts = [text for by, text in noted if by < 0]
            found.append(Gain(said, score, (score - by, score + by), both, texts))
        return found

    def _end(self) -> None:
        """Put the text that was being read to the sums."""
        if self._text is None:
            return
        here = self._here.double()
        self._sums += here
        for i in range(3):
            self._products[i] += here[i] * here
        self._texts += 1
        change = (here[1] - here[0]) / here[2, 0]
        for place in change.abs().topk(min(NOTED, len(change))).indices.tolist():
            if by := float(change[place]):
                self._noted.setdefault(place, []).append((by, self._text))
        self._here.zero_()
        self._text = None
