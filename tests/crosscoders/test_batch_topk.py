import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify_crosscoder.crosscoders.batch_topk import (
    kth_largest,
    select_above,
    select_largest,
    select_largest_per_row,
)
from sparsify_crosscoder.world import World


def test_the_largest_entries_of_the_batch_stay_not_of_each_row():
    scores = torch.tensor([[5.0, 4.0, 3.0], [1.0, 0.0, 2.0]])
    mask, cut = select_largest(scores, 3)
    assert mask.tolist() == [[True, True, True], [False, False, False]]
    assert cut == 3.0


def test_entries_that_are_zero_are_never_selected():
    mask, cut = select_largest(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), 3)
    assert mask.tolist() == [[False, True], [False, False]]
    assert cut == 0.0


def test_ties_at_the_cut_are_broken_in_order():
    mask, _ = select_largest(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), 3)
    assert mask.tolist() == [[True, True], [True, False]]


def test_no_budget_selects_nothing():
    mask, cut = select_largest(torch.rand(3, 4), 0)
    assert not mask.any() and cut == torch.inf


@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    budget=st.integers(1, 120),
    seed=st.integers(0, 10_000),
    levels=st.integers(1, 30),
)
def test_selection_is_the_full_sorts(shape, budget, seed, levels):
    generator = torch.Generator().manual_seed(seed)
    # Few levels make many ties.
    scores = torch.randint(0, levels, shape, generator=generator).float()
    mask, cut = select_largest(scores, budget)
    positive = int((scores > 0).sum())
    assert mask.sum() == min(budget, positive)
    expected = scores.flatten().sort(descending=True).values[: min(budget, positive)]
    assert torch.equal(scores[mask].sort(descending=True).values, expected)
    if budget <= positive:
        assert cut == expected[-1]


@given(seed=st.integers(0, 1000), budget=st.integers(1, 40), levels=st.integers(2, 50))
def test_two_ranks_select_what_one_would(seed, budget, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (6, 5), generator=generator).float()
    whole, cut = select_largest(scores, budget)
    halves = [scores[:2], scores[2:]]

    # Every rank's contribution to each collective, in the order in which they are called.
    def padded(part):
        flat = part.flatten().topk(min(budget, part.numel())).values
        return torch.cat([flat, flat.new_zeros(budget - len(flat))])

    def counts(part):
        tied = int(((part == cut) & (part > 0)).sum())
        return torch.tensor([[int((part > cut).sum()), tied]])

    for rank, part in enumerate(halves):
        calls = iter(
            [torch.cat([padded(h) for h in halves]), torch.cat([counts(h) for h in halves])]
        )
        world = World(lambda _, calls=calls: next(calls), rank, 2)
        mask, rank_cut = select_largest(part, budget, world)
        assert rank_cut == cut
        assert torch.equal(mask, whole[:2] if rank == 0 else whole[2:])


def test_the_kth_largest_of_chunks_is_that_of_the_whole():
    scores = torch.rand(7, 9)
    assert kth_largest(list(scores.split(3)), 20) == scores.flatten().topk(20).values[-1]
    assert kth_largest([scores], 64) == 0.0


def test_a_cut_selects_pair_by_pair():
    scores = torch.rand(6, 4)
    whole = select_above(scores, 0.5)
    assert torch.equal(whole, torch.cat([select_above(row[None], 0.5) for row in scores]))


def test_rows_keep_their_own_largest_positive_entries():
    mask = select_largest_per_row(torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 0.0]]), 2)
    assert mask.tolist() == [[True, False, True], [False, True, False]]
