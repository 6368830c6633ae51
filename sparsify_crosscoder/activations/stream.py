"""Shuffled batches of activation pairs, from running models or from a store.

Both streams put all pairs of all epochs into one endless global sequence, which depends on the
windows, the seed and (for live harvest) `buffer_pairs`, never on how many processes read it or
where they begin. Step t is rows [t * N, (t + 1) * N) of it, N being the pairs of a step over all
processes; a process yields its own part of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .harvest import HarvestReport, run_harvest
from .sources import Source
from .store import ActivationStore

Rows = Sequence[int] | np.ndarray | Tensor


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


def split_windows(windows: Dataset, held_out_pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of `windows` for training and held out, both ascending.

    Whole texts, drawn at random, are held out until they have at least `held_out_pairs` pairs.
    Raises ValueError if none would be left for training.
    """
    text_ids = np.asarray(windows["text_id"], dtype=np.int64)
    num_pairs = np.asarray(windows["num_pairs"], dtype=np.int64)
    _, text = np.unique(text_ids, return_inverse=True)
    pairs_of_text = np.bincount(text, weights=num_pairs).astype(np.int64)
    order = _rng(_SPLIT, seed).permutation(len(pairs_of_text))
    enough = int(np.searchsorted(np.cumsum(pairs_of_text[order]), held_out_pairs)) + 1
    chosen = order[: enough if held_out_pairs > 0 else 0]
    if len(chosen) == len(order):
        raise ValueError(
            f"Holding out {held_out_pairs:,} pairs takes all {len(order):,} texts "
            f"({num_pairs.sum():,} pairs) and leaves none to train on; hold out fewer or use more."
        )
    held_out = np.isin(text, chosen)
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))


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
        self._rows, self._num_pairs = _windows_used(windows, window_rows)
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
        order = _rng(_WINDOWS, self.seed, epoch).permutation(len(self._rows))
        ends = np.cumsum(self._num_pairs[order])
        bounds = _block_bounds(ends, self.buffer_pairs)
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
        shuffled = local_row[_rng(_PAIRS, self.seed, epoch, number).permutation(len(local_row))]
        self._block = _Block(start, stop, torch.from_numpy(shuffled), harvest.activations)
        return self._block


class StoreStream(ActivationStream):
    """Pairs of a store, every epoch in a new order of all of them.

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
    ):
        super().__init__()
        self.store = store
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        windows, counts = _windows_used(store.windows, window_rows)
        num_pairs = np.asarray(store.windows["num_pairs"], dtype=np.int64)
        first = (np.cumsum(num_pairs) - num_pairs)[windows]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        small = len(store) < 2**31
        self._pairs = (np.repeat(first, counts) + inside).astype(np.int32 if small else np.int64)
        self._windows = len(windows)
        self._order: tuple[int, Tensor] | None = None

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return len(self._pairs)

    @property
    def d_sources(self) -> list[int]:
        return self.store.d_sources

    def _read(self, start: int, stop: int) -> list[Tensor]:
        begun = time.perf_counter()
        parts = [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.num_pairs)
            end = min(stop, (epoch + 1) * self.num_pairs)
            parts.append(self._epoch_order(epoch)[offset : offset + end - start].long())
            start = end
        mine = torch.cat(parts)[self.rank :: self.world_size]
        rows = self.store.rows(mine)
        self._report += HarvestReport(pairs=len(mine), seconds=time.perf_counter() - begun)
        return rows

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            order = _rng(_PAIRS, self.seed, epoch).permutation(self._pairs)
            self._order = epoch, torch.from_numpy(order)
        return self._order[1]


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
                order = _rng(_PAIRS, self.seed, epoch).permutation(order)
            self._order = epoch, torch.from_numpy(order)
        return self._order[1]


# What a random order is for, so that one seed gives unrelated orders.
_SPLIT, _WINDOWS, _PAIRS = 1, 2, 3


def _rng(purpose: int, seed: int, epoch: int = 0, block: int = 0) -> np.random.Generator:
    return np.random.default_rng([block, epoch, seed % 2**64, purpose])


def _windows_used(windows: Dataset, rows: Rows | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the windows used, and how many pairs each has."""
    num_pairs = np.asarray(windows["num_pairs"], dtype=np.int64)
    used = np.arange(len(windows)) if rows is None else np.asarray(rows, dtype=np.int64)
    if not num_pairs[used].sum():
        raise ValueError("The windows hold no aligned pair: there is nothing to stream.")
    return used, num_pairs[used]


def _block_bounds(ends: np.ndarray, buffer_pairs: int) -> np.ndarray:
    """Bounds of blocks of at least `buffer_pairs` pairs among windows that end at pair `ends`."""
    bounds = [0]
    start = 0
    while ends[-1] - start >= 2 * buffer_pairs:
        stop = int(np.searchsorted(ends, start + buffer_pairs)) + 1
        if ends[-1] - ends[stop - 1] < buffer_pairs:
            break
        bounds.append(stop)
        start = int(ends[stop - 1])
    return np.array([*bounds, len(ends)])
