"""Intervals of counted rates and of what was measured on texts, on values worked out by hand."""

import numpy as np
import pytest

from sparsify_crosscoder.intervals import interval_over_texts, rate_interval


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


def test_an_interval_over_texts_is_that_of_a_mean_where_texts_are_of_one_length():
    values = np.random.default_rng(0).normal(3.0, 2.0, 100)
    sums = np.stack([values * 7, np.full(100, 7.0)], 1)
    found = interval_over_texts(sums, lambda s: s[..., 0] / s[..., 1])
    error = values.std(ddof=1) / 10
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05)
    same = interval_over_texts(np.ones((5, 2)), lambda s: s[..., 0] / s[..., 1])
    assert same == (1.0, pytest.approx(1.0), pytest.approx(1.0))
    with pytest.raises(ValueError, match="two texts or more, got 1"):
        interval_over_texts(sums[:1], lambda s: s[..., 0])
