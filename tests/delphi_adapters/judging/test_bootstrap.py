"""Intervals of mean ratings: that they cover, and what they do at the edges."""

import numpy as np
import pytest

from delphi_adapters.judging.bootstrap import difference, interval, intervals, prompt_weights

SAMPLES = 1200
LEVELS = np.arange(1, 6)
SHAPES = {
    "even": [0.2, 0.2, 0.2, 0.2, 0.2],
    "symmetric": [0.1, 0.2, 0.4, 0.2, 0.1],
    "skewed": [0.5, 0.25, 0.15, 0.07, 0.03],
    "low": [0.7, 0.2, 0.07, 0.02, 0.01],
    "high": [0.01, 0.02, 0.05, 0.22, 0.7],
}


def drawn(shape, n, random):
    """Ratings `[SAMPLES, n]` of a known mean."""
    return random.choice(LEVELS, p=SHAPES[shape], size=(SAMPLES, n)), np.dot(LEVELS, SHAPES[shape])


def rounded(latent):
    return np.clip(np.round(latent), 1, 5)


def coverage(found, mean):
    return np.mean([one.low <= mean + 1e-9 and mean - 1e-9 <= one.high for one in found])


def percentile_coverage(ratings, mean, random):
    """Of the bootstrap that everybody writes first."""
    n = ratings.shape[1]
    draws = ratings @ random.multinomial(n, np.full(n, 1 / n), size=2000).T / n
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    return np.mean((low <= mean) & (mean <= high))


@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_thirty_prompts_cover_as_often_as_they_say(shape):
    ratings, mean = drawn(shape, 30, np.random.default_rng(1))
    assert 0.93 <= coverage(intervals(ratings), mean) <= 0.97


@pytest.mark.parametrize("shape", ["even", "symmetric", "skewed"])
def test_intervals_of_ten_prompts_cover_as_often_as_they_say(shape):
    ratings, mean = drawn(shape, 10, np.random.default_rng(2))
    assert 0.93 <= coverage(intervals(ratings), mean) <= 0.97


@pytest.mark.parametrize("shape", ["low", "high"])
def test_ten_prompts_near_an_end_err_on_the_side_of_wide(shape):
    random = np.random.default_rng(3)
    ratings, mean = drawn(shape, 10, random)
    assert percentile_coverage(ratings, mean, random) < 0.9
    assert 0.95 <= coverage(intervals(ratings), mean) <= 0.99


@pytest.mark.parametrize(("n", "most"), [(10, 0.975), (30, 0.97)])
def test_several_ratings_of_a_prompt_are_no_more_prompts(n, most):
    random = np.random.default_rng(4)

    def sample(size):
        of_prompt = 3.8 + random.standard_normal((size, n, 1))
        return rounded(of_prompt + 0.4 * random.standard_normal((size, n, 3)))

    mean = sample(50_000).mean()
    samples = sample(SAMPLES // 2)
    assert 0.93 <= coverage([interval(one) for one in samples], mean) <= most
    as_if_prompts = intervals(samples.reshape(len(samples), -1))
    assert coverage(as_if_prompts, mean) < 0.85


@pytest.mark.parametrize("shift", [0.8, 1.8])
def test_differences_on_the_same_prompts_cover_and_are_narrower_than_unpaired_ones(shift):
    random = np.random.default_rng(5)

    def sample(size):
        of_prompt = 3 + random.standard_normal((size, 30))
        noise = 0.5 * random.standard_normal((2, size, 30))
        return rounded(of_prompt + noise[0]), rounded(of_prompt + shift + noise[1])

    first, second = sample(100_000)
    mean = (second - first).mean()
    first, second = sample(SAMPLES)
    found = [difference(a, b) for a, b in zip(first, second, strict=True)]
    assert 0.93 <= coverage(found, mean) <= 0.97
    some = zip(first[:200], second[:200], strict=True)
    mixed = [difference(random.permutation(a), b) for a, b in some]
    assert np.mean([one.high - one.low for one in found]) < 0.75 * np.mean(
        [one.high - one.low for one in mixed]
    )


def test_an_interval_holds_its_mean_and_stays_on_the_scale():
    found = intervals([[1, 1, 1, 5], [5, 5, 5, 5], [1, 2, 4, 5]])
    assert [one.mean for one in found] == [2, 5, 3]
    assert all(1 <= one.low <= one.mean <= one.high <= 5 for one in found)


def test_equal_ratings_still_leave_room_for_what_was_not_seen():
    low, middle, high = intervals([[1] * 30, [3] * 30, [5] * 30])
    assert low.low == 1 and 1.1 < low.high < 1.3
    assert high.high == 5 and high.low == pytest.approx(6 - low.high)
    assert middle.high - 3 == pytest.approx(3 - middle.low) == pytest.approx((low.high - 1) / 2)
    assert interval([1] * 60).high < low.high < interval([1] * 10).high


def test_neither_the_order_of_prompts_nor_another_start_changes_an_interval():
    ratings = np.random.default_rng(6).integers(1, 6, 30)
    first = interval(ratings)
    prompt_weights.cache_clear()
    assert interval(ratings[::-1]) == first


def test_missing_ratings_are_left_out():
    assert interval([1, 2, np.nan, 5]) == interval([1, 2, 5])
    assert interval([[1, 3], [np.nan, 4], [np.nan, np.nan]]) == interval([2, 4])
    assert [one.n for one in intervals([[1, 2, np.nan], [1, 2, 3]])] == [2, 3]
    assert difference([1, np.nan, 3, 4], [2, 2, np.nan, 4]) == difference([1, 4], [2, 4])


def test_one_prompt_says_nothing_of_others_and_none_nothing_at_all():
    one, none = interval([4]), interval([np.nan])
    assert (one.mean, one.low, one.high, one.n) == (4, 1, 5, 1)
    assert (none.mean, none.low, none.high, none.n) == (None, None, None, 0)


def test_what_is_no_rating_or_no_pair_is_refused():
    with pytest.raises(ValueError, match="not from 1 to 5"):
        interval([1, 6])
    with pytest.raises(ValueError, match="3 and of 2 prompts"):
        difference([1, 2, 3], [1, 2])
