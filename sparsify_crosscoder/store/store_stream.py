"""Pairs of a store, shuffled without a list of them in memory."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..harvest.report import HarvestReport
from .order import WHOLE_PAIRS, PairNumbers, Rows, ShuffledEpochs, Stretch
from .pair_notes import PairNotes
from .store import ActivationStore
from .stored_rows import StoredRows, join_rows
from .stream import ActivationStream

_STRETCH_BYTES = 2**27
_READ_AT_ONCE = 1024


class _Loaded(NamedTuple):
    """A stretch of the sequence, and its pairs if they are in memory."""

    stretch: Stretch
    rows: StoredRows | None


class StoreStream(ActivationStream):
    """Pairs of a store, every epoch in a new order.

    Up to `whole_pairs` pairs are permuted as a whole, and rows are read one by one. More are
    shuffled in stretches of `stretch_pairs` pairs, by default 128 MB in 16 bits, which are read in
    blocks: one is in memory while a thread reads the next, so memory does not grow with the store.
    Of each step's rows, rank r of `world_size` takes every `world_size`-th. `window_rows` are the
    windows to use, all by default.
    """

    def __init__(
        self,
        store: ActivationStore,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window_rows: Rows | None = None,
        stretch_pairs: int | None = None,
        whole_pairs: int = WHOLE_PAIRS,
    ):
        super().__init__()
        self.store = store
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._numbers = PairNumbers(store.windows, window_rows)
        stretch_pairs = stretch_pairs or _STRETCH_BYTES // (2 * sum(store.d_sources))
        self._epochs = ShuffledEpochs(len(self._numbers), seed, stretch_pairs, whole_pairs)
        self._loaded: _Loaded | None = None
        self._next: tuple[int, Future[_Loaded]] | None = None
        self._reader = ThreadPoolExecutor(1, "read")

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return len(self._numbers)

    @property
    def d_sources(self) -> list[int]:
        return self.store.d_sources

    def numbers(self, start: int, stop: int) -> Tensor:
        """Numbers in the store, int64 [n], of this rank's pairs among [start, stop) of the
        sequence: those that batches give, in their order."""
        mine = np.arange(start, stop)[self.rank :: self.world_size]
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            stretch = self._epochs.stretch_at(start)
            here = mine[(mine >= start) & (mine < stretch.stop)] - stretch.start
            parts.append(stretch.pairs[stretch.order[here]])
            start = min(stop, stretch.stop)
        return self._numbers.at(np.concatenate(parts))

    def _read(self, start: int, stop: int) -> list[Tensor]:
        begun = time.perf_counter()
        mine = np.arange(start, stop)[self.rank :: self.world_size]
        parts = [self.store.stored_rows(torch.empty(0, dtype=torch.int64)).decode()]
        while start < stop:
            loaded = self._loaded_at(start)
            stretch = loaded.stretch
            here = mine[(mine >= start) & (mine < stretch.stop)] - stretch.start
            places = stretch.order[here]
            if loaded.rows is None:
                parts.append(self.store.rows(self._numbers.at(stretch.pairs[places])))
            else:
                parts.append(loaded.rows.at(torch.from_numpy(places)).decode())
            start = min(stop, stretch.stop)
        self._report += HarvestReport(pairs=len(mine), seconds=time.perf_counter() - begun)
        if len(parts) == 2:
            return parts[1]
        return [torch.cat(of_source) for of_source in zip(*parts, strict=True)]

    def notes(self, start: int, stop: int) -> PairNotes:
        """Where the rows come from that `_read` gives of [start, stop), in the same order."""
        mine = np.arange(start, stop)[self.rank :: self.world_size]
        numbers = [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            stretch = self._epochs.stretch_at(start)
            here = mine[(mine >= start) & (mine < stretch.stop)] - stretch.start
            numbers.append(self._numbers.at(stretch.pairs[stretch.order[here]]))
            start = min(stop, stretch.stop)
        return self.store.notes(torch.cat(numbers))

    def texts(self, start: int, stop: int) -> Tensor:
        return self.notes(start, stop).text_id

    def _loaded_at(self, position: int) -> _Loaded:
        if self._loaded is not None:
            stretch = self._loaded.stretch
            if stretch.start <= position < stretch.stop:
                return self._loaded
        self._loaded = None
        if self._next is not None and self._next[0] == position:
            self._loaded = self._next[1].result()
        else:
            self._loaded = self._load(position)
        behind = self._loaded.stretch.stop
        self._next = None
        if not self._epochs.whole:
            self._next = behind, self._reader.submit(self._load, behind)
        return self._loaded

    def _load(self, position: int) -> _Loaded:
        stretch = self._epochs.stretch_at(position)
        if self._epochs.whole:
            return _Loaded(stretch, None)
        numbers = self._numbers.at(stretch.pairs)
        parts = (self.store.stored_rows(part) for part in numbers.split(_READ_AT_ONCE))
        return _Loaded(stretch, join_rows(parts, len(numbers)))
