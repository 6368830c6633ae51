"""Statistics of latents with standard errors, against plain regressions and known distributions."""

import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.evaluation.jackknife import squared_lengths, standard_error
from sparsify_crosscoder.evaluation.latent_moments import Encoded, LatentMoments
from sparsify_crosscoder.evaluation.latent_statistics import at_rate, latent_statistics

PAIRS, EVENTS = 40_000, 60


def test_squared_lengths_have_no_bias_where_there_is_nothing():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([30.0, 50.0, 20.0, 40.0])
    noise = torch.randn(4, 2_000, 25, generator=generator) * sizes.sqrt()[:, None, None]
    found = squared_lengths(noise, sizes)[0]
    # Of the mean of 140 the squared length would be 25 / 140.
    assert abs(found.mean()) < 5 * found.std() / 2_000**0.5 < 0.01
    moved = noise + sizes[:, None, None] * 0.3
    assert squared_lengths(moved, sizes)[0].mean() == pytest.approx(25 * 0.09, rel=0.02)


def test_squared_lengths_without_a_fold_are_those_of_the_others():
    parts = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0])
    others = torch.tensor([0, 1, 3, 4])
    expected = squared_lengths(parts[others], sizes[others])[0]
    torch.testing.assert_close(squared_lengths(parts, sizes)[1 + 2], expected)


def test_the_jackknife_error_of_a_mean_is_the_usual_one():
    values = torch.randn(8, 100, generator=torch.Generator().manual_seed(2))
    means = [values[torch.arange(8) != k].mean(0) for k in range(8)]
    found = standard_error(torch.stack([values.mean(0), *means]))
    torch.testing.assert_close(found, values.std(0) / 8**0.5)


def test_a_rare_event_is_told_as_well_as_a_frequent_one_at_the_same_distance():
    generator = torch.Generator().manual_seed(3)
    shares = []
    for rate in (0.01, 0.0005):
        event = torch.rand(2_000_000, generator=generator) < rate
        x = torch.randn(2_000_000, generator=generator) + 8 * event
        r2 = torch.corrcoef(torch.stack([x, event.float()]))[0, 1] ** 2
        shares.append(at_rate(r2, event.float().mean()).item())
    assert shares[0] == pytest.approx(0.01 * 0.99 * 64 / (1 + 0.01 * 0.99 * 64), abs=0.02)
    assert shares[1] == pytest.approx(shares[0], abs=0.04)
    often = torch.tensor(0.3)
    assert at_rate(often, torch.tensor(0.2)) == pytest.approx(0.3)


def measured(seed):
    """A latent of the first source that fires on some 60 of 40,000 pairs, at what both have."""
    generator = torch.Generator().manual_seed(seed)
    crosscoder = DedicatedFeatureCrosscoder([6, 7], DFCConfig(num_latents=20, k=4))
    moments = LatentMoments(1, 13)
    x = torch.randn(PAIRS, 13, generator=generator)
    rows = (torch.rand(PAIRS, generator=generator) < EVENTS / PAIRS).nonzero()[:, 0]
    x[rows, 0] += 8
    x[rows, 6] += 5
    for part in range(8):
        here = (rows // (PAIRS // 8)) == part
        places = rows[here] - part * (PAIRS // 8)
        some = x[part * (PAIRS // 8) : (part + 1) * (PAIRS // 8)]
        code = SparseCode(torch.ones(len(places)), torch.zeros_like(places), places, (len(some), 1))
        moments.update(Encoded(some, code, torch.zeros_like(some), None, len(some)))
    return latent_statistics(
        crosscoder, moments, torch.zeros(1, dtype=torch.long), predictability=0.5, ridge=1e-6
    )


def test_standard_errors_are_the_spread_over_samples():
    found = [measured(seed) for seed in range(40)]
    for name in ("own", "others", "own_at_rate", "others_at_rate", "margin"):
        values = torch.cat([getattr(one, name).value for one in found])
        errors = torch.cat([getattr(one, name).error for one in found])
        # A jackknife errs on the side of too large errors.
        assert 0.75 < errors.square().mean().sqrt() / values.std() < 1.75, name
    rate = EVENTS / PAIRS
    own = torch.cat([one.own.value for one in found])
    assert own.mean() == pytest.approx(rate * 64 / (1 + rate * 64), rel=0.05)
