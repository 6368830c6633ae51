"""In which order pairs come: which texts are held out, and how an epoch is shuffled.

All of it depends on the pairs and a seed alone, never on who reads, or where reading begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..text.window_numbers import window_numbers

Rows = Sequence[int] | np.ndarray | Tensor

# What a random order is for, so that one seed gives unrelated orders.
SPLIT, WINDOWS, PAIRS = 1, 2, 3

WHOLE_PAIRS = 2**18
BLOCK_PAIRS = 32


def random_numbers(purpose: int, seed: int, epoch: int = 0, block: int = 0) -> np.random.Generator:
    """Random numbers for one purpose, the same wherever they are asked for."""
    return np.random.default_rng([block, epoch, seed % 2**64, purpose])


def split_windows(windows: Dataset, held_out_pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of `windows` for training and held out, both ascending.

    Whole texts, drawn at random, are held out until they have at least `held_out_pairs` pairs.
    Raises ValueError if none would be left for training.
    """
    text_ids = window_numbers(windows, "text_id")
    num_pairs = window_numbers(windows, "num_pairs")
    _, text = np.unique(text_ids, return_inverse=True)
    pairs_of_text = np.bincount(text, weights=num_pairs).astype(np.int64)
    order = random_numbers(SPLIT, seed).permutation(len(pairs_of_text))
    enough = int(np.searchsorted(np.cumsum(pairs_of_text[order]), held_out_pairs)) + 1
    chosen = order[: enough if held_out_pairs > 0 else 0]
    if len(chosen) == len(order):
        raise ValueError(
            f"Holding out {held_out_pairs:,} pairs takes all {len(order):,} texts "
            f"({num_pairs.sum():,} pairs) and leaves none to train on; hold out fewer or use more."
        )
    held_out = np.isin(text, chosen)
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))


def windows_used(windows: Dataset, rows: Rows | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the windows used, all by default, and how many pairs each has."""
    num_pairs = window_numbers(windows, "num_pairs")
    used = np.arange(len(windows)) if rows is None else np.asarray(rows, dtype=np.int64)
    if not num_pairs[used].sum():
        raise ValueError("The windows hold no aligned pair: there is nothing to stream.")
    return used, num_pairs[used]


class PairNumbers:
    """Numbers in a store of the pairs of some of its windows, [P], without a list of them."""

    def __init__(self, windows: Dataset, rows: Rows | None = None):
        used, counts = windows_used(windows, rows)
        num_pairs = window_numbers(windows, "num_pairs")
        self._first = (np.cumsum(num_pairs) - num_pairs)[used]
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def at(self, places: np.ndarray) -> Tensor:
        """The numbers at `places` [n] among these pairs, int64 [n]."""
        window = np.searchsorted(self._ends, places, side="right")
        return torch.from_numpy(self._first[window] + places - self._starts[window])


class Stretch(NamedTuple):
    """Consecutive positions of the endless sequence whose pairs are shuffled together."""

    start: int
    stop: int

    pairs: np.ndarray
    """Which of the epoch's pairs are in it, ascending [stop - start]."""

    order: np.ndarray
    """Place in `pairs` of each position [stop - start]."""


class ShuffledEpochs:
    """Epochs of `num_pairs` pairs one after the other, each in a new order.

    Up to `whole_pairs` pairs are permuted as a whole: a stretch is an epoch. More are cut into
    blocks of `BLOCK_PAIRS` consecutive pairs; the blocks are permuted, and so are the pairs of
    the blocks that make up about `stretch_pairs` pairs. Then whatever reads has to hold one
    stretch, and reads blocks.
    """

    def __init__(
        self, num_pairs: int, seed: int, stretch_pairs: int, whole_pairs: int = WHOLE_PAIRS
    ):
        self.num_pairs = num_pairs
        self.seed = seed
        self.whole = num_pairs <= whole_pairs
        self._blocks_at_once = max(stretch_pairs // BLOCK_PAIRS, 1)
        self._blocks: tuple[int, np.ndarray] | None = None

    def stretch_at(self, position: int) -> Stretch:
        """The stretch that holds a position of the sequence."""
        epoch, offset = divmod(position, self.num_pairs)
        start = epoch * self.num_pairs
        if self.whole:
            order = random_numbers(PAIRS, self.seed, epoch).permutation(self.num_pairs)
            return Stretch(start, start + self.num_pairs, np.arange(self.num_pairs), order)
        blocks = self._order_of_blocks(epoch)
        size = self._blocks_at_once * BLOCK_PAIRS
        # The last block of the epoch is shorter; every stretch behind it begins that much earlier.
        missing = len(blocks) * BLOCK_PAIRS - self.num_pairs
        short_in = int(np.flatnonzero(blocks == len(blocks) - 1)[0]) // self._blocks_at_once
        number = offset // size
        if number >= short_in:
            number = (offset + missing) // size
        begin = number * size - (missing if number > short_in else 0)
        chosen = np.sort(
            blocks[number * self._blocks_at_once : (number + 1) * self._blocks_at_once]
        )
        pairs = (chosen[:, None] * BLOCK_PAIRS + np.arange(BLOCK_PAIRS)).ravel()
        pairs = pairs[pairs < self.num_pairs]
        order = random_numbers(PAIRS, self.seed, epoch, number).permutation(len(pairs))
        return Stretch(start + begin, start + begin + len(pairs), pairs, order)

    def _order_of_blocks(self, epoch: int) -> np.ndarray:
        if self._blocks is None or self._blocks[0] != epoch:
            count = -(-self.num_pairs // BLOCK_PAIRS)
            self._blocks = epoch, random_numbers(WINDOWS, self.seed, epoch).permutation(count)
        return self._blocks[1]


def block_bounds(ends: np.ndarray, buffer_pairs: int) -> np.ndarray:
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
