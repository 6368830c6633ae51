import itertools

import numpy as np
import pytest

from sparsify_crosscoder.permutation import BEYOND_CHANCE, group_p, rank_p


def test_the_smallest_p_follows_from_how_many_nulls_there_are():
    assert rank_p(9.0, [0.0] * 5) == 1 / 6
    assert rank_p(9.0, [0.0] * 19) == 0.05
    assert rank_p(1.0, [1.0, 0.0, 2.0]) == 3 / 4
    assert rank_p(1.0, []) == 1.0


def test_the_p_of_two_groups_counts_all_divisions():
    larger, smaller = [3.0, 5.0, 4.0], [1.0, 2.0, 4.0, 0.0]
    values = np.array([*larger, *smaller])
    seen = np.mean(larger) - np.mean(smaller)
    as_large = [
        values[list(chosen)].mean() - np.delete(values, chosen).mean() >= seen - 1e-9
        for chosen in itertools.combinations(range(7), 3)
    ]
    assert group_p(larger, smaller) == pytest.approx(np.mean(as_large))
    assert group_p([5.0] * 5, [0.0] * 5) == pytest.approx(1 / 252)
    assert group_p([1.0] * 4, [1.0] * 4) == 1.0
    assert group_p([1.0], [0.0]) == 1.0
    with pytest.raises(ValueError, match="both sides"):
        group_p([], [1.0])


def test_equal_distributions_are_called_different_at_most_as_often_as_meant():
    rng, times, many, few = np.random.default_rng(0), 120, 6, 5
    # Scores of a judge, with ties, and skewed ones.
    for draw in (lambda n: rng.integers(1, 6, n), lambda n: rng.exponential(size=n)):
        called = sum(group_p(draw(many), draw(few)) <= BEYOND_CHANCE / 2 for _ in range(times))
        # More than 2.5% of 120 give once in 1,000 times.
        assert called <= 9
    ranked = [
        rank_p(rng.normal(), rng.normal(size=few).tolist()) <= BEYOND_CHANCE for _ in range(times)
    ]
    assert not any(ranked)  # so few say nothing
    ranked = [
        rank_p(rng.normal(), rng.normal(size=39).tolist()) <= BEYOND_CHANCE
        for _ in range(12 * times)
    ]
    assert 0.03 < np.mean(ranked) < 0.07
