"""Intervals, ranks and agreement, on values worked out by hand."""

import pytest

from delphi_adapters.report.chance import (
    difference_interval,
    rank_correlation,
    reliability,
    superiority,
)


def test_constant_sides_differ_by_just_that():
    assert difference_interval([3, 3, 3], [1, 1]) == (2.0, 2.0)


def test_the_interval_of_a_difference_of_many_is_that_of_the_normal_distribution():
    first, second = [0, 1] * 500, [0, 1] * 500
    low, high = difference_interval(first, second)
    half = 1.96 * (0.25 / 1000 + 0.25 / 1000) ** 0.5
    assert (low, high) == pytest.approx((-half, half), abs=0.005)
    assert difference_interval(first, second) == (low, high)  # the same every time


@pytest.mark.parametrize("sides", [([], [1]), ([1], [])])
def test_one_side_alone_is_no_comparison(sides):
    with pytest.raises(ValueError, match="both sides"):
        difference_interval(*sides)
    with pytest.raises(ValueError, match="both sides"):
        superiority(*sides)


def test_superiority_counts_pairs_and_half_of_equals():
    assert superiority([3, 4], [1, 2]) == 1.0
    assert superiority([1, 2], [1, 2]) == 0.5
    assert superiority([1, 3], [2, 3]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


def test_rank_correlation_sees_order_alone():
    assert rank_correlation([1, 2, 3], [1, 10, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


def test_reliability_is_what_prompts_leave_of_the_variance():
    scores = [1, 3, 5]  # variance 4
    assert reliability(scores, [0, 0, 0]) == 1.0
    assert reliability(scores, [1, 1, 1]) == pytest.approx(1 - 1 / 4)
    assert reliability(scores, [1, 1, 1], prompts=2) == pytest.approx(1 - 1 / 8)
    assert reliability(scores, [9, 9, 9]) == 0.0
    assert reliability([2, 2, 2], [1, 1, 1]) is None
    assert reliability([1, 2], [1, 1]) is None
