"""The false share of a list, by hand and in simulation."""

import numpy as np
import pytest
import torch

from sparsify_crosscoder.evaluation.error_rates import NullList, error_rates
from sparsify_crosscoder.intervals import rate_interval


def test_shares_worked_out_by_hand():
    nulls = [
        NullList("one", torch.tensor([0.5, 0.1]), 100),
        NullList("two", torch.tensor([0.3]), 50),
    ]
    rates = error_rates(torch.tensor([0.9, 0.5, 0.4, 0.2]), 75, nulls)
    # 0, 1, 1 and 2 of 150 things in the nulls are as strong; half as many of 75; of 1, 2, 3, 4.
    assert [rate.q_value for rate in rates] == pytest.approx([0, 1 / 6, 1 / 6, 1 / 4])
    low, high = rate_interval(1, 150)
    assert rates[2][1:] == pytest.approx((low * 75 / 3, high * 75 / 3))


def test_the_order_of_the_list_does_not_matter_and_equal_scores_are_equally_sure():
    nulls = [NullList("null", torch.tensor([0.5, 0.2, 0.2]), 10)]
    scores = torch.tensor([0.2, 0.9, 0.5, 0.5])
    rates = error_rates(scores, 10, nulls)
    again = error_rates(scores.flip(0), 10, nulls)
    assert rates == again[::-1]
    assert rates[2] == rates[3]
    assert rates[1].q_value == 0
    assert rates[0].q_value == pytest.approx(3 / 4)


def test_what_the_nulls_have_as_often_is_false_altogether():
    scores = torch.linspace(0, 1, 50)
    rates = error_rates(scores, 50, [NullList("null", scores, 50)])
    assert all(rate.q_value == pytest.approx(1) for rate in rates)


@pytest.mark.parametrize("nulls", [[], [NullList("null", torch.tensor([]), 0)]])
def test_without_a_null_there_is_no_error_rate(nulls):
    with pytest.raises(ValueError, match="needs nulls"):
        error_rates(torch.tensor([0.5]), 10, nulls)


def test_intervals_cover_the_share_that_is_meant():
    """Of lists whose things pass with a known chance, 93 to 97 in 100 hold the true share."""
    rng = np.random.default_rng(0)
    tested, score, held = 800, torch.tensor([0.5]), []
    for chance in rng.uniform(0.002, 0.05, 1000):
        passed = rng.binomial(3 * tested, chance)
        nulls = [NullList("null", torch.full((int(passed),), 0.6), 3 * tested)]
        # Below 100 findings nothing is cut off at 1.
        (rate,) = error_rates(score, 1, nulls)
        held.append(rate.low <= chance <= rate.high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_the_false_share_of_what_is_kept_is_the_one_that_was_asked_for():
    """A list of 30 differences among 300 things, and nulls without them."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(60):
        nulls = [
            NullList(str(n), torch.from_numpy(rng.exponential(0.05, 300)), 300) for n in range(3)
        ]
        real, other = rng.uniform(0.1, 1, 30), rng.exponential(0.05, 270)
        rates = error_rates(torch.from_numpy(np.concatenate([real, other])), 300, nulls)
        kept = np.array([rate.q_value <= 0.1 for rate in rates])
        shares.append(kept[30:].sum() / max(kept.sum(), 1))
    assert 0.05 <= np.mean(shares) <= 0.11
