from itertools import product

import numpy as np
import pytest
import torch

from sparsify_crosscoder.harvest.batching import batch_sizes, batches_by_length
from tests.support.windows import random_windows


@pytest.mark.parametrize(
    "lengths, cost, sizes",
    [
        ([], 1, []),
        ([7], 1, [1]),
        ([5] * 7, 1, [1, 3, 3]),  # nothing to pad: as few forwards as there can be
        ([1, 1, 1, 9, 9, 9], 5, [3, 3]),
        ([1, 9, 9, 9], 1, [1, 3]),
        ([1, 7, 9], 1, [1, 1, 1]),
        ([1, 7, 9], 3, [1, 2]),
        ([1, 7, 9], 9, [3]),
    ],
)
def test_batches_are_cut_where_padding_would_take_longer_than_a_forward(lengths, cost, sizes):
    assert batch_sizes(lengths, 3, cost) == sizes


def test_batches_take_the_least_time_of_all_ways_to_cut():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = sorted(rng.integers(1, 30, 9).tolist())

        def time(sizes, lengths=lengths):
            return sum(n * lengths[sum(sizes[: i + 1]) - 1] + 12 for i, n in enumerate(sizes))

        ways = [
            [len(part) + 1 for part in "".join(cuts).split("|")] for cuts in product(".|", repeat=8)
        ]
        assert time(batch_sizes(lengths, 4, 12)) == min(
            time(sizes) for sizes in ways if max(sizes) <= 4
        )


def test_batches_hold_every_window_with_pairs_once_in_order_of_length():
    windows = random_windows(9)
    texts = windows[:]
    counts = np.array(windows["num_pairs"])
    texts["pairs_1"][3] = []
    counts[3] = 0
    batches = list(batches_by_length(texts, [1], counts, 4, 8))
    ends = np.cumsum(counts)
    ids, found = [], torch.zeros(int(ends[-1]), dtype=torch.long)
    for batch in batches:
        assert batch.input_ids.shape == batch.attention_mask.shape
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            assert mask.sort(descending=True).values.equal(mask)
            ids.append(row[mask.bool()].tolist())
        found[batch.destination] += batch.input_ids[batch.window, batch.position[1]]
    wanted = [i for i in range(9) if i != 3]
    assert sorted(ids) == sorted(texts["input_ids_1"][i] for i in wanted)
    assert [len(row) for row in ids] == sorted(len(row) for row in ids)
    paired = [texts["input_ids_1"][i][p] for i in wanted for p in texts["pairs_1"][i]]
    assert found.tolist() == paired
