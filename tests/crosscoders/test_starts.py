import pytest
import torch
import torch.nn.functional as F

from sparsify_crosscoder.crosscoders.starts import ALIKE, standing_out, written_by
from tests.support.rare_differences import with_rare_differences


def search(x, count, seed=0):
    return standing_out(x, count, torch.Generator().manual_seed(seed))


def test_the_search_finds_what_stands_out_on_a_hundredth_of_the_pairs():
    x, directions = with_rare_differences(count=6, size=6.0)
    found = search(x, 20)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20))
    cosines = directions @ found.T
    assert cosines.max(1).values.median() > 0.95 and cosines.max(1).values.min() > 0.85
    assert len(set(cosines.argmax(1).tolist())) == 6


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
def test_the_search_finds_a_difference_that_more_pairs_have(share):
    x, directions = with_rare_differences(count=1, size=5.0, width=200, share=share)
    assert (directions @ search(x, 20).T).max() > 0.75


@pytest.mark.parametrize("share", [0.002, 0.001])
def test_the_search_begins_at_the_pairs_that_stand_out_most(share):
    x, directions = with_rare_differences(count=1, size=30.0, width=200, share=share)
    assert all((directions @ search(x, 20, seed).T).max() > 0.75 for seed in (0, 1))


@pytest.mark.parametrize(("pairs", "width", "count"), [(2_000, 40, 200), (30, 4, 50), (2, 3, 4)])
def test_no_two_directions_are_alike(pairs, width, count):
    x, _ = with_rare_differences(count=2, size=6.0, pairs=pairs, width=width)
    found = search(x, count)
    assert len(found) <= count and found.shape[1] == width and found.isfinite().all()
    assert (found @ found.T - torch.eye(len(found))).max() <= ALIKE


def test_what_was_found_gives_way_to_what_it_does_not_explain():
    generator = torch.Generator().manual_seed(0)
    strong, weak = F.normalize(torch.randn(2, 30, generator=generator), dim=1)
    x = torch.zeros(5_000, 30)
    x[:50] = 10 * strong
    x[50:100] = 0.01 * weak
    found = search(x, 5)
    assert (found @ strong).max() > 0.999 and (found @ weak).max() > 0.999
    assert len(found) == 2


def test_the_pairs_to_begin_at_follow_from_the_seed():
    x = torch.randn(2_000, 50, generator=torch.Generator().manual_seed(0))
    first = search(x, 30)
    assert torch.equal(first, search(x, 30))
    assert (first @ search(x, 30, seed=1).T).amax(1).median() < 0.95


def test_nothing_stands_out_where_nothing_is():
    assert search(torch.zeros(50, 8), 5).shape == (0, 8)


def test_what_is_written_is_the_sum_over_the_farthest_hundredth_weighted_by_how_far():
    x = torch.tensor([[3.0, 0.0], [2.0, 1.0], [-5.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    x += torch.arange(200)[:, None] * 1e-4
    y = torch.arange(400.0).view(200, 2)
    direction = torch.tensor([[1.0, 0.0]])
    far = (x[:, 0].topk(2).values, x[:, 0].topk(2).indices)
    torch.testing.assert_close(written_by(x, direction, y), (far[0] @ y[far[1]])[None])
