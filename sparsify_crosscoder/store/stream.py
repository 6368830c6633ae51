"""Shuffled batches of activation pairs, from running models or from a store.

Both streams put all pairs of all epochs into one endless global sequence, which depends on the
windows, the seed and (for live harvest) `buffer_pairs`, never on how many processes read it or
where they begin. Step t is rows [t * N, (t + 1) * N) of it, N being the pairs of a step over all
processes; a process yields its own part of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..harvest.harvest import run_harvest
from ..harvest.report import HarvestReport
from ..harvest.source import Source
from .order import (
    PAIRS,
    WHOLE_PAIRS,
    WINDOWS,
    PairNumbers,
    Rows,
    ShuffledEpochs,
    Stretch,
    block_bounds,
    random_numbers,
    windows_used,
)
from .shards import StoredRows, join_rows
from .store import ActivationStore

_STRETCH_BYTES = 2**27
_READ_AT_ONCE = 1024


class ActivationStream(ABC):
    """Pairs of all epochs as one endless sequence; what training reads from."""

    def __init__(self) -> None:
        self._report = HarvestReport()

    @property
    @abstractmethod
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes; known before any model runs."""

    @property
    @abstractmethod
    def d_sources(self) -> list[int]:
        """Width of each source."""

    @abstractmethod
    def _read(self, start: int, stop: int) -> list[Tensor]:
        """This rank's rows among [start, stop) of the global sequence, in its order."""

    def batches(
        self, first_step: int, last_step: int, pairs_per_step: int
    ) -> Iterator[list[Tensor]]:
        """Steps [first_step, last_step): this rank's rows, one [n, d_s] per source, n may be 0."""
        for step in range(first_step, last_step):
            yield self._read(step * pairs_per_step, (step + 1) * pairs_per_step)

    def sample(self, num_pairs: int) -> list[Tensor]:
        """This rank's part of the first `num_pairs` pairs, of one epoch at most."""
        return self._read(0, min(num_pairs, self.num_pairs))

    def report(self) -> HarvestReport:
        """What this rank has read so far."""
        return self._report


def every_pair(
    stream: ActivationStream, largest: int, num_pairs: int | None = None, least_batches: int = 1
) -> Iterator[list[Tensor]]:
    """This rank's part of an epoch, or of its first `num_pairs`, every pair exactly once.

    In at least so many batches of at most `largest` pairs over all processes, all of one size but
    for the last, which has what is left. Every process gets the same number of batches.
    """
    total = stream.num_pairs if num_pairs is None else min(num_pairs, stream.num_pairs)
    if total < 1:
        return
    size = -(-total // max(-(-total // largest), least_batches))
    whole = total // size
    yield from stream.batches(0, whole, size)
    pieces, start = [], whole * size
    while start < total:
        # A step begins at a multiple of its size: the largest power of two that fits.
        piece = start & -start
        while start + piece > total:
            piece //= 2
        pieces += stream.batches(start // piece, start // piece + 1, piece)
        start += piece
    if pieces:
        yield [torch.cat(parts) for parts in zip(*pieces, strict=True)]


class _Block(NamedTuple):
    """Windows whose pairs are shuffled together, and this process's part of them."""

    start: int
    """Where the block begins in the global sequence."""

    stop: int

    local_row: Tensor
    """[pairs of the block, in shuffled order]: row in `activations`, or -1 if another rank's."""

    activations: list[Tensor]


class LiveStream(ActivationStream):
    """Pairs harvested while they are used, shuffled in blocks.

    Every epoch the windows are permuted and cut into blocks of at least `buffer_pairs` pairs (a
    rest joins the block before it), and the pairs of a block are permuted. A block is in memory as
    a whole, and harvested as a whole: beginning inside one gives the same bits as arriving there.
    Rank r of `world_size` runs the models on every `world_size`-th window of a block. `window_rows`
    are the windows to use, all by default.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        windows: Dataset,
        *,
        batch_size: int,
        buffer_pairs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window_rows: Rows | None = None,
    ):
        if buffer_pairs < 1:
            raise ValueError(f"buffer_pairs must be at least 1, got {buffer_pairs}.")
        super().__init__()
        self.sources = sources
        self.windows = windows
        self.batch_size = batch_size
        self.buffer_pairs = buffer_pairs
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._rows, self._num_pairs = windows_used(windows, window_rows)
        self._block: _Block | None = None

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return int(self._num_pairs.sum())

    @property
    def d_sources(self) -> list[int]:
        return [source.width for source in self.sources]

    def _read(self, start: int, stop: int) -> list[Tensor]:
        parts: list[list[Tensor]] = []
        while start < stop or not parts:
            block = self._block_at(start)
            end = min(stop, block.stop)
            rows = block.local_row[start - block.start : end - block.start]
            rows = rows[rows >= 0]
            parts.append([x[rows.to(x.device)] for x in block.activations])
            start = end
            del block  # or it stays in memory while the next is harvested
        return [torch.cat(list(of_source)) for of_source in zip(*parts, strict=True)]

    def _block_at(self, position: int) -> _Block:
        if self._block is not None and self._block.start <= position < self._block.stop:
            return self._block
        self._block = None  # two blocks need not fit into memory
        epoch, offset = divmod(position, self.num_pairs)
        order = random_numbers(WINDOWS, self.seed, epoch).permutation(len(self._rows))
        ends = np.cumsum(self._num_pairs[order])
        bounds = block_bounds(ends, self.buffer_pairs)
        number = int(np.searchsorted(ends[bounds[1:] - 1], offset, side="right"))
        first, last = bounds[number], bounds[number + 1]
        start = epoch * self.num_pairs + int(ends[first - 1] if first else 0)
        stop = epoch * self.num_pairs + int(ends[last - 1])

        mine = order[first:last][self.rank :: self.world_size]
        harvest = run_harvest(
            self.sources, self.windows, self._rows[mine], batch_size=self.batch_size
        )
        self._report += harvest.report
        counts = self._num_pairs[order[first:last]]
        owner = np.repeat(np.arange(len(counts)) % self.world_size, counts)
        local_row = np.full(stop - start, -1, dtype=np.int64)
        local_row[owner == self.rank] = np.arange(harvest.report.pairs)
        shuffled = local_row[
            random_numbers(PAIRS, self.seed, epoch, number).permutation(len(local_row))
        ]
        self._block = _Block(start, stop, torch.from_numpy(shuffled), harvest.activations)
        return self._block


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


class TensorStream(ActivationStream):
    """Pairs that are in memory already, one `[N, d_s]` tensor per source.

    With a `seed` every epoch has a new order, without one they come as they are. Of each step's
    rows, rank r of `world_size` takes every `world_size`-th. Raises ValueError if the sources have
    different numbers of pairs, or none.
    """

    def __init__(
        self,
        activations: Sequence[Tensor],
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__()
        lengths = {len(x) for x in activations}
        if len(lengths) != 1 or not max(lengths):
            raise ValueError(
                f"Every source needs the same number of pairs, and at least one; got "
                f"{[len(x) for x in activations]}."
            )
        self.activations = list(activations)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._order: tuple[int, Tensor] | None = None

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return len(self.activations[0])

    @property
    def d_sources(self) -> list[int]:
        return [x.shape[1] for x in self.activations]

    def _read(self, start: int, stop: int) -> list[Tensor]:
        parts = [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.num_pairs)
            end = min(stop, (epoch + 1) * self.num_pairs)
            parts.append(self._epoch_order(epoch)[offset : offset + end - start])
            start = end
        mine = torch.cat(parts)[self.rank :: self.world_size]
        self._report += HarvestReport(pairs=len(mine))
        return [x[mine.to(x.device)] for x in self.activations]

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            order = np.arange(self.num_pairs)
            if self.seed is not None:
                order = random_numbers(PAIRS, self.seed, epoch).permutation(order)
            self._order = epoch, torch.from_numpy(order)
        return self._order[1]


class SelectedSources(ActivationStream):
    """Some of another stream's sources, by number, in any order; one may be there twice.

    `SelectedSources(stream, [0, 0])` compares a model with itself. Raises ValueError for a source
    that the stream does not have.
    """

    def __init__(self, stream: ActivationStream, sources: Sequence[int]):
        super().__init__()
        count = len(stream.d_sources)
        if not sources or not all(0 <= s < count for s in sources):
            raise ValueError(f"The stream has sources 0..{count - 1}, not all of {list(sources)}.")
        self.stream, self.selected = stream, list(sources)

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return self.stream.num_pairs

    @property
    def d_sources(self) -> list[int]:
        return [self.stream.d_sources[s] for s in self.selected]

    def report(self) -> HarvestReport:
        return self.stream.report()

    def _read(self, start: int, stop: int) -> list[Tensor]:
        read = self.stream._read(start, stop)
        return [read[s] for s in self.selected]
