"""Pairs that are harvested while they are used."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..harvest.harvest import run_harvest
from ..harvest.source import Source
from ..text.window_numbers import window_numbers
from .order import PAIRS, WINDOWS, Rows, block_bounds, random_numbers, windows_used
from .pair_notes import PairNotes, WindowNotes
from .stream import ActivationStream


class _Plan(NamedTuple):
    """Windows whose pairs are shuffled together, and this process's part of them."""

    start: int
    """Where the block begins in the global sequence."""

    stop: int

    windows: np.ndarray
    """Windows that this rank reads."""

    local_row: Tensor
    """[pairs of the block, in shuffled order]: which of the pairs of `windows`, or -1 if another
    rank's."""


class _Block(NamedTuple):
    """A plan, carried out."""

    plan: _Plan
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
        self._counts = window_numbers(windows, "num_pairs")
        self._block: _Block | None = None
        self._notes = WindowNotes(windows)

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
            rows, end = _local_rows(block.plan, start, stop)
            parts.append([x[rows.to(x.device)] for x in block.activations])
            start = end
            del block  # or it stays in memory while the next is harvested
        return [torch.cat(list(of_source)) for of_source in zip(*parts, strict=True)]

    def notes(self, start: int, stop: int) -> PairNotes:
        """Where the rows come from that `_read` gives of [start, stop), in the same order."""
        windows = [torch.empty(0, dtype=torch.int64)]
        positions = [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            plan = self._plan_at(start)
            rows, start = _local_rows(plan, start, stop)
            counts = self._counts[plan.windows]
            first = np.cumsum(counts) - counts
            of_pair = np.repeat(np.arange(len(counts)), counts)
            windows.append(torch.from_numpy(plan.windows[of_pair])[rows])
            positions.append(torch.from_numpy(np.arange(len(of_pair)) - first[of_pair])[rows])
        return self._notes.at(torch.cat(windows), torch.cat(positions))

    def texts(self, start: int, stop: int) -> Tensor:
        return self.notes(start, stop).text_id

    def _plan_at(self, position: int) -> _Plan:
        epoch, offset = divmod(position, self.num_pairs)
        order = random_numbers(WINDOWS, self.seed, epoch).permutation(len(self._rows))
        ends = np.cumsum(self._num_pairs[order])
        bounds = block_bounds(ends, self.buffer_pairs)
        number = int(np.searchsorted(ends[bounds[1:] - 1], offset, side="right"))
        first, last = bounds[number], bounds[number + 1]
        start = epoch * self.num_pairs + int(ends[first - 1] if first else 0)
        stop = epoch * self.num_pairs + int(ends[last - 1])

        counts = self._num_pairs[order[first:last]]
        owner = np.repeat(np.arange(len(counts)) % self.world_size, counts)
        mine = owner == self.rank
        local_row = np.where(mine, np.cumsum(mine) - 1, -1)
        shuffled = local_row[
            random_numbers(PAIRS, self.seed, epoch, number).permutation(len(local_row))
        ]
        windows = self._rows[order[first:last][self.rank :: self.world_size]]
        return _Plan(start, stop, windows, torch.from_numpy(shuffled))

    def _block_at(self, position: int) -> _Block:
        block = self._block
        if block is not None and block.plan.start <= position < block.plan.stop:
            return block
        del block
        self._block = None  # two blocks need not fit into memory
        plan = self._plan_at(position)
        harvest = run_harvest(self.sources, self.windows, plan.windows, batch_size=self.batch_size)
        self._report += harvest.report
        self._block = _Block(plan, harvest.activations)
        return self._block


def _local_rows(plan: _Plan, start: int, stop: int) -> tuple[Tensor, int]:
    """This rank's pairs of a block among [start, stop), and where in that the block ends."""
    end = min(stop, plan.stop)
    rows = plan.local_row[start - plan.start : end - plan.start]
    return rows[rows >= 0], end
