import numpy as np
import pytest

from sparsify_crosscoder.store.order import (
    BLOCK_PAIRS,
    PAIRS,
    PairNumbers,
    ShuffledEpochs,
    random_numbers,
)
from tests.support.windows import random_windows

# Counts of pairs around multiples of a block and of a stretch of two blocks.
COUNTS = [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 320, 345]


def epochs(num_pairs, seed=0, whole_pairs=0):
    return ShuffledEpochs(num_pairs, seed, 2 * BLOCK_PAIRS, whole_pairs)


def stretches(shuffled, num_epochs):
    """The stretches of some epochs, found from position to position."""
    position, found = 0, []
    while position < num_epochs * shuffled.num_pairs:
        found.append(shuffled.stretch_at(position))
        assert found[-1].start == position
        position = found[-1].stop
    return found


@pytest.mark.parametrize("num_pairs", COUNTS)
def test_every_epoch_holds_every_pair_once(num_pairs):
    for number in range(3):
        position, seen = number * num_pairs, []
        while position < (number + 1) * num_pairs:
            stretch = epochs(num_pairs).stretch_at(position)
            assert stretch.start == position
            assert sorted(stretch.order) == list(range(stretch.stop - stretch.start))
            seen += stretch.pairs[stretch.order].tolist()
            position = stretch.stop
        assert position == (number + 1) * num_pairs
        assert sorted(seen) == list(range(num_pairs))


@pytest.mark.parametrize("num_pairs", COUNTS)
@pytest.mark.parametrize("seed", range(4))
def test_every_position_belongs_to_the_stretch_around_it(num_pairs, seed):
    shuffled = epochs(num_pairs, seed)
    for stretch in stretches(shuffled, 2):
        for position in range(stretch.start, stretch.stop):
            again = shuffled.stretch_at(position)
            assert (again.start, again.stop) == (stretch.start, stretch.stop)
            assert np.array_equal(again.order, stretch.order)


def test_a_stretch_is_two_whole_blocks_of_consecutive_pairs():
    for stretch in stretches(epochs(345), 1):
        blocks = np.unique(stretch.pairs // BLOCK_PAIRS)
        assert len(blocks) <= 2
        expected = [p for b in blocks for p in range(32 * b, min(32 * (b + 1), 345))]
        assert stretch.pairs.tolist() == expected


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        found = [s for s in stretches(epochs(345, seed), 2) if s.start // 345 == epoch]
        return [p for s in found for p in s.pairs[s.order]]

    orders = [tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_few_pairs_are_one_permutation_of_the_epoch():
    shuffled = epochs(200, seed=3, whole_pairs=200)
    for epoch in (0, 1):
        stretch = shuffled.stretch_at(epoch * 200 + 77)
        assert (stretch.start, stretch.stop) == (epoch * 200, epoch * 200 + 200)
        expected = random_numbers(PAIRS, 3, epoch).permutation(200)
        assert np.array_equal(stretch.pairs[stretch.order], expected)


def test_neighbours_in_a_text_end_up_far_apart():
    order = np.concatenate([s.pairs[s.order] for s in stretches(epochs(32_000), 1)])
    assert np.median(np.abs(np.diff(order))) > 5
    first_blocks = np.array([s.pairs[0] for s in stretches(epochs(32_000), 1)])
    assert abs(np.corrcoef(first_blocks, np.arange(len(first_blocks)))[0, 1]) < 0.2


def test_pairs_of_some_windows_have_their_numbers_in_the_store():
    windows = random_windows(10)
    counts = np.array(windows["num_pairs"])
    owner = np.repeat(np.arange(10), counts)
    rows = [1, 4, 5, 9]
    numbers = PairNumbers(windows, rows)
    expected = np.flatnonzero(np.isin(owner, rows))
    assert len(numbers) == len(expected)
    assert numbers.at(np.arange(len(numbers))).tolist() == expected.tolist()
    assert numbers.at(np.array([3, 0])).tolist() == expected[[3, 0]].tolist()
