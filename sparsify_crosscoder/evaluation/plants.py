"""Known differences to plant into pairs of activations: what of, where, and how much.

A plant is a direction that is added to one source wherever chance, a token or a topic says. Nothing
is written: a stream adds the plants as pairs are read, by the pairs' numbers in their store.

N pairs, P plants, D width of a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..store.normalization import within_norm
from ..store.store import ActivationStore
from ..store.store_stream import StoreStream
from ..store.stream import ActivationStream
from .noted_pairs import NotedPairs
from .plant_config import Cell, Directions

TOP_DIMENSIONS = 5
"""Dimensions of the largest variance, of which no direction is drawn: all would be alike."""


@dataclass(frozen=True)
class Plant:
    """One known difference."""

    cell: Cell
    replicate: int
    source: int
    """Which model has it."""

    pairs: np.ndarray
    """Numbers of the pairs that have it, ascending."""

    direction: Tensor
    """A unit vector `[D]`."""

    strength: float
    """Length of what is added to raw activations."""

    token: int | None = None
    """That says where it is, in the source's own vocabulary."""


class SourceScale(NamedTuple):
    """How large a source's activations are and which way they vary, from some rows of it."""

    norm: float
    """Median of the centred activations' norms."""

    centred: Tensor
    """Without outliers and without the `TOP_DIMENSIONS`, `[n, D]`."""

    @classmethod
    def of(cls, rows: Tensor, outlier_multiple: float) -> SourceScale:
        """From raw rows `[n, D]`."""
        rows = rows[within_norm([rows], outlier_multiple)].float()
        rows = rows - rows.mean(0)
        norm = float(rows.norm(dim=1).median())
        rows[:, rows.var(0).topk(min(TOP_DIMENSIONS, rows.shape[1] - 1)).indices] = 0
        return cls(norm, rows)

    def draw(self, directions: Directions, random: np.random.Generator) -> Tensor:
        """A unit vector `[D]`."""
        rows, width = self.centred.shape
        if directions == "isotropic":
            drawn = torch.from_numpy(random.standard_normal(width)).float()
        else:
            drawn = torch.from_numpy(random.standard_normal(rows)).float() @ self.centred
        return drawn / drawn.norm()


def pair_tokens(store: ActivationStore, source: int) -> np.ndarray:
    """The token of a source at which each pair of a store was read, int64 `[N]`."""
    names = [f"input_ids_{source}", f"pairs_{source}"]
    table: Any = store.windows.select_columns(names).with_format("arrow")[:]
    ids, places = (table[name].combine_chunks() for name in names)
    starts = np.cumsum(ids.value_lengths().to_numpy()) - ids.value_lengths().to_numpy()
    first = np.repeat(starts, places.value_lengths().to_numpy())
    return ids.flatten().to_numpy()[first + places.flatten().to_numpy()].astype(np.int64)


class _Planted(NamedTuple):
    """All plants of one source."""

    strengths: Any
    """Sparse scipy matrix `[N, P]`."""

    directions: np.ndarray
    """`[P, D]`."""


class PlantedPairs:
    """Adds plants to the pairs of a store of `num_pairs`, as they are read."""

    def __init__(self, plants: Sequence[Plant], num_pairs: int):
        self._of = {
            source: _planted([one for one in plants if one.source == source], num_pairs)
            for source in {one.source for one in plants}
        }

    def add(self, numbers: Tensor, raw: Sequence[Tensor]) -> list[Tensor]:
        """Raw activations `[n, d_s]` of the pairs with some numbers `[n]`, with what is planted
        there, in the precision that they have."""
        result = list(raw)
        for source, planted in self._of.items():
            strengths = planted.strengths[numbers.cpu().numpy()]
            hit = np.flatnonzero(np.diff(strengths.indptr))
            if len(hit):
                rows = torch.from_numpy(hit).to(raw[source].device)
                more = torch.from_numpy(strengths[hit] @ planted.directions).to(rows.device)
                x = raw[source].clone()
                x[rows] = (x[rows].float() + more).to(x.dtype)
                result[source] = x
        return result

    def noted(self, pairs: NotedPairs) -> NotedPairs:
        """Noted pairs with the plants, and without their KL: a plant says nothing."""
        return replace(pairs, read=lambda index: self.add(index, pairs.read(index)), kl=None)


def _planted(plants: Sequence[Plant], num_pairs: int) -> _Planted:
    from scipy import sparse

    rows = np.concatenate([one.pairs for one in plants])
    columns = np.repeat(np.arange(len(plants)), [len(one.pairs) for one in plants])
    values = np.repeat([one.strength for one in plants], [len(one.pairs) for one in plants])
    shape = (num_pairs, len(plants))
    strengths = sparse.csr_matrix((values.astype(np.float32), (rows, columns)), shape=shape)
    return _Planted(strengths, torch.stack([one.direction for one in plants]).numpy())


class PlantedStream(ActivationStream):
    """The pairs of a store's stream, in its order, with plants."""

    def __init__(self, stream: StoreStream, planted: PlantedPairs):
        super().__init__()
        self.stream, self.planted = stream, planted

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return self.stream.num_pairs

    @property
    def d_sources(self) -> list[int]:
        return self.stream.d_sources

    def report(self):
        return self.stream.report()

    def notes(self, start: int, stop: int):
        return self.stream.notes(start, stop)

    def texts(self, start: int, stop: int) -> Tensor:
        return self.stream.texts(start, stop)

    def _read(self, start: int, stop: int) -> list[Tensor]:
        return self.planted.add(self.stream.numbers(start, stop), self.stream._read(start, stop))
