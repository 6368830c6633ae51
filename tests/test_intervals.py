"""Intervals of counted rates, on values worked out by hand."""

import pytest

from sparsify_crosscoder.intervals import rate_interval


def test_a_rate_of_nothing_may_be_anything():
    assert rate_interval(0, 0) == (0.0, 1.0)


def test_none_of_ten_may_still_be_a_quarter():
    low, high = rate_interval(0, 10)
    z2 = 1.959964**2
    assert low == 0.0
    assert high == pytest.approx(z2 / (10 + z2))  # 0.278: Wilson's for a count of 0


def test_the_interval_of_a_half_is_even_and_narrows():
    low, high = rate_interval(50, 100)
    assert low + high == pytest.approx(1)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert rate_interval(10, 10)[1] == 1.0


def test_more_than_all_cannot_be_counted():
    with pytest.raises(ValueError, match="11 of 10"):
        rate_interval(11, 10)
