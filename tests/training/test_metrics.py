import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify_crosscoder.training.metrics import ErrorStatistics, evaluate, fve
from sparsify_crosscoder.world import World
from tests.support import streams as pairs_in_memory
from tests.support.crosscoders import make
from tests.support.streams import TensorStream


def test_fve_by_hand():
    statistics = ErrorStatistics(2)
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    x_hat = torch.tensor([[0.0, 1.0], [1.0, 1.0], [4.0, 2.0]])
    statistics.update(x, x_hat)
    # Variances: 8 and 6; squared errors: 1 and 4.
    assert fve([statistics]) == pytest.approx(1 - 5 / 14)
    assert fve([statistics], without_top=1) == pytest.approx(1 - 4 / 6)


@given(cuts=st.lists(st.integers(0, 20), max_size=4), seed=st.integers(0, 100))
def test_statistics_of_parts_merge_to_those_of_the_whole(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, generator=generator) + 100
    x_hat = x + torch.randn(20, 3, generator=generator)
    whole, merged = ErrorStatistics(3), ErrorStatistics(3)
    whole.update(x, x_hat)
    for part, part_hat in zip(
        x.tensor_split(sorted(cuts)), x_hat.tensor_split(sorted(cuts)), strict=True
    ):
        merged.update(part, part_hat)
    assert merged.count == 20
    torch.testing.assert_close(merged.deviations, whole.deviations)
    torch.testing.assert_close(merged.errors, whole.errors)
    again = ErrorStatistics.from_tensor(merged.to_tensor())
    assert fve([again]) == fve([merged])


def test_evaluation_measures_each_source_without_its_largest_dimensions():
    crosscoder = make("dfc", {})
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(600, d, generator=generator, dtype=torch.float64) for d in (7, 5)]
    data[0][:, 0] *= 50  # a dimension that holds nearly all variance
    out = crosscoder(data)
    crosscoder.update_threshold(out.cuts, 0.999)
    result = evaluate(crosscoder, TensorStream(data), outlier_multiple=0.0)
    code = crosscoder.eval().encode_sparse(data)
    x_hat = crosscoder.decode_sparse(code).split([7, 5], 1)
    for s in range(2):
        error = (data[s] - x_hat[s]).pow(2).sum(0)
        variance = (data[s] - data[s].mean(0)).pow(2).sum(0)
        expected = 1 - (error.sum() / variance.sum()).item()
        assert result["fve_per_source"][s] == pytest.approx(expected)
        kept = variance.argsort(descending=True)[5:]
        expected = 1 - (error[kept].sum() / variance[kept].sum()).item() if len(kept) else None
        if expected is not None:
            assert result["fve_without_top5_per_source"][s] == pytest.approx(expected)
    assert result["mean_l0"] == pytest.approx(len(code.acts) / 600)
    assert result["l0_per_block"] == {
        block.name: int((code.to_dense()[:, block.start : block.stop] > 0).sum()) / 600
        for block in crosscoder.partition.blocks
    }
    assert result["held_out_pairs"] == 600


def test_outliers_are_counted_and_left_out():
    crosscoder = make("dfc", {})
    data = [torch.randn(400, d, dtype=torch.float64) for d in (7, 5)]
    data[1][:10] *= 1e4
    result = evaluate(crosscoder, TensorStream(data), outlier_multiple=3.0)
    assert result["held_out_outliers"] >= 10
    assert result["held_out_pairs"] + result["held_out_outliers"] == 400


def test_fve_with_and_without_outliers_by_hand():
    # Nothing fires, so that every pair is reconstructed as 0: where values are -1 and 1 in turn the
    # FVE is 0, and what is far out moves the mean.
    crosscoder = make("crosscoder", {}).eval()
    crosscoder.encoder.bias.data.fill_(-1e9)
    crosscoder.threshold.fill_(1.0)
    a, b = torch.zeros(101, 7, dtype=torch.float64), torch.zeros(101, 5, dtype=torch.float64)
    a[:, 0] = torch.tensor([1.0, -1.0] * 50 + [1.0])
    b[:, 0] = a[:, 0]
    a[100, 0] = 30.0
    result = evaluate(crosscoder, TensorStream([a, b]))
    assert result["held_out_outliers"] == 1 and result["held_out_pairs"] == 100
    assert result["held_out_outlier_share"] == pytest.approx(1 / 101)
    assert result["fve_per_source"] == pytest.approx([0.0, 0.0])
    # Squares sum to 1,000 in the first source with a mean of 30 / 101, and to 101 in the second.
    expected = [1 - 1_000 / (1_000 - 30**2 / 101), 1 - 101 / (101 - 1 / 101)]
    assert result["fve_per_source_with_outliers"] == pytest.approx(expected)
    together = 1 - 1_101 / (1_101 - (30**2 + 1) / 101)
    assert result["fve_with_outliers"] == pytest.approx(together)
    everything = evaluate(crosscoder, TensorStream([a, b]), outlier_multiple=0)
    assert everything["held_out_outliers"] == 0 and everything["fve"] == pytest.approx(together)


@pytest.mark.parametrize("pairs", [1, 7, 1_024, 8_400, 1_025 * 2 + 1])
def test_every_held_out_pair_is_evaluated_on_one_rank_or_two(pairs):
    crosscoder = make("dfc", {}).eval()
    data = [torch.randn(pairs, d, dtype=torch.float64) for d in (7, 5)]
    alone = evaluate(crosscoder, pairs_in_memory.TensorStream(data, seed=1))
    assert alone["held_out_pairs"] + alone["held_out_outliers"] == pairs

    with ThreadPoolExecutor(2) as pool:
        worlds = two_worlds()
        results = list(
            pool.map(
                lambda world: evaluate(
                    copy.deepcopy(crosscoder),
                    pairs_in_memory.TensorStream(data, seed=1, rank=world.rank, world_size=2),
                    world=world,
                ),
                worlds,
            )
        )
    for result in results:
        for name in ("held_out_pairs", "held_out_outliers"):
            assert result[name] == alone[name]
        assert result["fve"] == pytest.approx(alone["fve"], nan_ok=True)
        assert result["mean_l0"] == pytest.approx(alone["mean_l0"])


def two_worlds() -> list[World]:
    """Two ranks in threads of one process, which wait for each other at every exchange."""
    barrier, given = Barrier(2, timeout=60), [torch.empty(0)] * 2

    def gather_of(rank: int):
        def gather(x: torch.Tensor) -> torch.Tensor:
            given[rank] = x
            barrier.wait()
            together = torch.cat(given)
            barrier.wait()
            return together

        return gather

    return [World(gather_of(rank), rank, 2) for rank in (0, 1)]
