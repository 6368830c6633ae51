import pytest
import torch

from sparsify_crosscoder.store.normalization import (
    estimate_normalization,
    geometric_median,
    median_norms,
    within_norm,
)
from sparsify_crosscoder.world import World


def test_the_papers_widths_scale_to_a_median_norm_of_59():
    generator = torch.Generator().manual_seed(0)
    sample = [
        torch.randn(501, 4096, generator=generator) * 3 + 10,
        torch.randn(501, 2880, generator=generator) * 50,
    ]
    means, factors = estimate_normalization(sample)
    for x, mean, factor in zip(sample, means, factors, strict=True):
        norms = ((x - mean) * factor).norm(dim=1)
        assert norms.median().item() == pytest.approx(59.06, abs=0.01)
        torch.testing.assert_close(mean, x.mean(0))


def test_the_other_reading_and_the_uncentred_scale():
    x = [torch.randn(101, 4096) + 5, torch.randn(101, 4096)]
    means, factors = estimate_normalization(x, centred=False, target="half_sum")
    assert not any(mean.any() for mean in means)
    norms = (x[0] * factors[0]).norm(dim=1)
    assert norms.median().item() == pytest.approx((8192**0.5) / 2)


def test_a_constant_source_is_refused():
    with pytest.raises(ValueError, match="Source 1"):
        estimate_normalization([torch.randn(9, 4), torch.ones(9, 4)])


def test_a_pair_is_dropped_if_either_source_is_an_outlier():
    ones = torch.ones(7, 1)
    a, b = ones.clone(), ones.clone() * 10
    a[2], b[4], b[5] = 2.01, 20.1, 19.9
    assert within_norm([a, b], 2.0).tolist() == [True, True, False, True, False, True, True]
    assert within_norm([a, b], 0.0).all()


def test_the_median_is_that_of_all_ranks():
    mine, theirs = torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0], [2.0]])
    together = torch.cat([mine, theirs])
    calls = iter([torch.tensor([2, 3]), torch.cat([mine[:, 0], torch.zeros(1), theirs[:, 0]])])
    world = World(lambda _: next(calls), 0, 2)
    assert within_norm([mine], 2.0, world).tolist() == within_norm([together], 2.0)[:2].tolist()


def test_known_medians_judge_a_pair_alike_in_any_batch():
    x = [torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([[5.0], [5.0], [5.0]])]
    assert median_norms(x).tolist() == [3.0, 5.0]
    known = torch.tensor([2.0, 5.0])
    assert within_norm(x, 2.0, medians=known).tolist() == [True, True, False]
    for i in range(3):
        alone = [part[i : i + 1] for part in x]
        assert within_norm(alone, 2.0, medians=known).item() == (i < 2)
        assert within_norm(alone, 2.0).item()  # its own median
    # A median of 0 is not known: the batch's is taken, 3 here.
    assert within_norm(x, 2.0, medians=torch.tensor([0.0, 5.0])).tolist() == [True, True, False]
    assert within_norm(x, 3.0, medians=torch.tensor([0.0, 5.0])).all()
    assert within_norm(x, 0.0, medians=known).all()


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="source 1 are not finite"):
        within_norm([torch.ones(3, 2), torch.tensor([[1.0], [torch.inf], [1.0]])], 2.0)


def test_the_geometric_median_resists_outliers():
    x = torch.cat([torch.randn(200, 3) * 0.01 + 1, torch.full((40, 3), 100.0)])
    torch.testing.assert_close(geometric_median(x), torch.ones(3), atol=0.02, rtol=0)
    corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(geometric_median(corners), torch.ones(2))
