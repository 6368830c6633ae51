"""Differences that are one: latents that are present together, or that write one linear change.

N pairs, C candidates, D width of a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .clusters import SAME
from .latent_shifts import CodedPairs

SAME_PLACES = 0.5
"""Share of the pairs on which the rarer of two latents is present, on which both are."""

MOST = 4096
"""Candidates of the highest scores that are compared with each other."""


class Member(NamedTuple):
    """What shows the same difference as another entry."""

    kind: str
    latent: int | None
    source: int


@dataclass(frozen=True)
class Candidate:
    """What may be a difference, by itself."""

    kind: str
    source: int
    latent: int | None
    """Its column of the coded pairs: a latent, or behind these a component; None for a change that
    is everywhere."""

    verdict: str
    score: float
    strength: float
    p_value: float
    effect: float
    error: float
    share: float
    direction: Tensor
    """Normalised, `[D]`."""

    residual: int
    """Number of the residual that it moves."""

    white: Tensor
    """How it moves it: a unit vector, `[D]`."""

    cosine: float | None = None
    growth: float | None = None
    reads: Tensor | None = None
    reference: int | None = None
    kl_heard: float | None = None
    """Mean KL of what is said in the texts in which it is present, nats, if known."""


def merged(
    found: CodedPairs, candidates: Sequence[Candidate]
) -> list[tuple[Candidate, list[Candidate]]]:
    """Candidates, the highest score first, with the weaker ones that are the same.

    Two latents are the same if their activations correlate, or if they are present on the same
    pairs and move a residual in the same direction. A linear change, and a shift of the mean with
    what fires almost everywhere, is the same as what moves the residual in its direction.
    """
    if not candidates:
        return []
    some = candidates[:MOST]
    together = _Together.of(found, [one.latent for one in some if one.latent is not None])
    residual = torch.tensor([one.residual for one in candidates])
    white = pad_sequence([one.white for one in candidates], batch_first=True)
    kinds = np.array([one.kind for one in candidates])
    dense = torch.tensor([one.latent is not None and found.dense[one.latent] for one in candidates])
    free = np.ones(len(candidates), dtype=bool)
    groups: list[tuple[Candidate, list[Candidate]]] = []
    for i, one in enumerate(candidates):
        if not free[i]:
            continue
        alike = ((white @ white[i]).abs() >= SAME) & (residual == one.residual)
        if one.kind == "map":
            same = alike.numpy()
        elif one.kind == "mean":
            same = (alike & dense).numpy() | (alike.numpy() & (kinds == "map"))
        else:
            same = alike.numpy() & ((kinds == "map") | ((kinds == "mean") & bool(dense[i])))
            same[: len(some)] |= together.same(one, some, alike[: len(some)].numpy())
        same &= free
        free &= ~same
        members = [
            other
            for other, alike in zip(candidates, same, strict=True)
            if alike and other is not one
        ]
        groups.append((one, members))
    return groups


def member(one: Candidate) -> Member:
    """A candidate as what another entry shows."""
    return Member(one.kind, None if one.kind == "component" else one.latent, one.source)


@dataclass(frozen=True)
class _Together:
    """Where latents are present together."""

    number: dict[int | None, int]
    correlations: Any
    """Sparse `[C, C]` scipy matrix."""

    overlaps: Any

    @classmethod
    def of(cls, found: CodedPairs, latents: list[int]) -> _Together:
        from scipy import sparse

        acts, columns, rows = found.entries(torch.tensor(latents, dtype=torch.long))
        shape = (len(found), len(latents))
        z = sparse.csr_matrix((acts.double().numpy(), (rows.numpy(), columns.numpy())), shape=shape)
        there = z.copy()
        there.data = np.ones_like(there.data)
        mean = np.asarray(z.mean(0)).ravel()
        deviation = np.sqrt(np.asarray(z.multiply(z).mean(0)).ravel() - mean**2)
        deviation = np.maximum(deviation, 1e-30)
        products = (z.T @ z).tocoo()
        row, column = products.row, products.col
        products.data = products.data / len(found) - mean[row] * mean[column]
        products.data /= deviation[row] * deviation[column]
        both = (there.T @ there).tocoo()
        count = np.asarray(there.sum(0)).ravel()
        both.data = both.data / np.minimum(count[both.row], count[both.col])
        number: dict[int | None, int] = {latent: i for i, latent in enumerate(latents)}
        return cls(number, products.tocsr(), both.tocsr())

    def same(self, one: Candidate, others: Sequence[Candidate], alike: np.ndarray) -> np.ndarray:
        """Which of some candidates are latents that are the same as one, `[C]`."""
        result = np.zeros(len(others), dtype=bool)
        if one.latent not in self.number:
            return result
        i = self.number[one.latent]
        correlation = self.correlations[i].toarray().ravel()
        overlap = self.overlaps[i].toarray().ravel()
        latents = np.array([other.latent is not None for other in others])
        alike = alike[latents]
        result[latents] = (correlation >= SAME) | ((overlap >= SAME_PLACES) & alike)
        return result
