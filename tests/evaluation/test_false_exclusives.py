"""The filter on latents whose meaning is known, and its regressions against plain ones."""

import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.evaluation.false_exclusives import (
    FilterConfig,
    Verdict,
    judge_exclusives,
)
from sparsify_crosscoder.evaluation.latent_moments import (
    LatentMoments,
    bytes_needed,
    collect,
    predicted_share,
)
from sparsify_crosscoder.store.tensor_stream import TensorStream

WIDTHS = [8, 10]
PAIRS = 12_000
# What the first source's exclusive latents stand for.
OWN, COPY, RARE, DEAF, SHADOW = range(5)


def pairs_with_a_difference(seed=0):
    """Two views of six common factors, and of a rare one that only the first source has."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(PAIRS, 6, generator=generator)
    common = common * (torch.rand(PAIRS, 6, generator=generator) < 0.2)
    own = (torch.rand(PAIRS, generator=generator) < 0.05) * 2.0
    a = torch.zeros(PAIRS, 8)
    a[:, :6], a[:, 6] = common, own
    mix = torch.linalg.qr(torch.randn(10, 10, generator=generator)).Q[:6]
    b = common @ mix
    noise = [0.05 * torch.randn(x.shape, generator=generator) for x in (a, b)]
    return [a + noise[0], b + noise[1]]


@pytest.fixture
def crosscoder():
    cfg = DFCConfig(num_latents=20, k=4, exclusive_fractions=[0.25, 0.25], screening="exact")
    crosscoder = DedicatedFeatureCrosscoder(WIDTHS, cfg).eval()
    with torch.no_grad():
        for weight in (*crosscoder.encoder.weights, *crosscoder.decoders):
            weight.zero_()
        encoder, decoder = crosscoder.encoder.weights[0], crosscoder.decoders[0]
        for latent, column in ((OWN, 6), (COPY, 2), (RARE, 3), (DEAF, 4)):
            encoder[latent, column] = decoder[latent, column] = 1.0
        crosscoder.encoder.bias[:5] = torch.tensor([-0.5, -0.5, -2.9, -0.5, -0.5])
        crosscoder.threshold.fill_(1e-3)
    return crosscoder


def judged(crosscoder, pairs, **options):
    cfg = FilterConfig(pairs=PAIRS, outlier_multiple=0, **options)
    candidates = [torch.arange(4), torch.tensor([], dtype=torch.long)]
    return judge_exclusives(crosscoder, TensorStream(pairs), cfg, candidates=candidates)


def test_a_difference_is_kept_and_a_copy_and_a_rare_latent_are_not(crosscoder):
    found = judged(crosscoder, pairs_with_a_difference())
    assert found.verdicts[OWN] == Verdict.KEPT
    assert found.verdicts[COPY] == Verdict.PREDICTABLE
    assert found.verdicts[RARE] == Verdict.TOO_RARE
    assert found.kept(0).tolist() == [OWN]
    assert found.kept(1).tolist() == []
    assert found.own[OWN] > 0.8 and found.others[OWN] < 0.01
    assert found.others[COPY] > 0.9 * found.own[COPY]
    assert found.shadow[OWN] < 0.05 < found.shadow[COPY]
    assert found.counts() == {
        "kept": 1,
        "predictable": 2,
        "shadow": 0,
        "too_rare": 1,
        "not_linear": 0,
    }


def test_the_highest_score_comes_first_and_rows_say_why(crosscoder):
    rows = judged(crosscoder, pairs_with_a_difference()).rows()
    assert rows[0]["latent"] == OWN and rows[0]["score"] > 0
    assert [row["score"] for row in rows[1:]] == [0, 0, 0]
    reasons = {row["latent"]: row["reason"] for row in rows}
    assert "about as well as its own" in reasons[COPY]
    assert "too few pairs" in reasons[RARE]


def test_a_latent_that_its_own_source_does_not_predict_is_not_scorable(crosscoder):
    pairs = pairs_with_a_difference()
    # The far tail of a normal distribution: only a little of it is linear.
    with torch.no_grad():
        crosscoder.encoder.weights[0][DEAF].zero_()
        crosscoder.encoder.weights[0][DEAF, 7] = 1.0
        crosscoder.encoder.bias[DEAF] = -2.5
    pairs[0][:, 7] = torch.randn(PAIRS, generator=torch.Generator().manual_seed(1))
    found = judged(crosscoder, pairs, min_own=0.3, min_firings=50)
    assert found.verdicts[DEAF] == Verdict.NOT_LINEAR
    assert not Verdict(int(found.verdicts[DEAF])).scorable


def test_a_latent_that_moves_the_other_sources_own_part_is_a_shadow(crosscoder):
    pairs = pairs_with_a_difference()
    # Both sources have an amplitude of their own for the same event.
    generator = torch.Generator().manual_seed(2)
    event = torch.rand(PAIRS, generator=generator) < 0.05
    pairs[0][:, 7] += event * 4 * torch.rand(PAIRS, generator=generator)
    pairs[1][:, 9] += event * 4 * torch.rand(PAIRS, generator=generator)
    with torch.no_grad():
        crosscoder.encoder.weights[0][DEAF].zero_()
        crosscoder.encoder.weights[0][DEAF, 7] = crosscoder.decoders[0][DEAF, 7] = 1.0
    found = judged(crosscoder, pairs, predictability=0.999)
    assert found.verdicts[DEAF] == Verdict.SHADOW
    assert found.verdicts[OWN] == Verdict.KEPT


def test_many_weak_firings_on_something_else_do_not_make_a_shadow(crosscoder):
    pairs = pairs_with_a_difference()
    generator = torch.Generator().manual_seed(2)
    # It also fires, six times as often and a sixth as strongly, on an event for which both sources
    # have an amplitude of their own.
    event = torch.rand(PAIRS, generator=generator) < 0.3
    pairs[0][:, 7] += event * 4 * torch.rand(PAIRS, generator=generator)
    pairs[1][:, 9] += event * 4 * torch.rand(PAIRS, generator=generator)
    with torch.no_grad():
        crosscoder.encoder.weights[0][OWN, 7] = 0.2
        crosscoder.encoder.bias[OWN] = -0.1
        for latent in (COPY, RARE, DEAF):
            crosscoder.encoder.weights[0][latent].zero_()
    found = judged(crosscoder, pairs)
    assert found.verdicts[OWN] == Verdict.KEPT
    # Where the other source moves with the strong firings as well, it still is one.
    pairs[1][:, 8] += pairs[0][:, 6] * torch.rand(PAIRS, generator=generator)
    found = judged(crosscoder, pairs, predictability=0.999)
    assert found.verdicts[OWN] == Verdict.SHADOW


def test_little_memory_takes_several_passes_to_the_same_verdicts(crosscoder):
    pairs = pairs_with_a_difference()
    whole = judged(crosscoder, pairs)
    fixed = bytes_needed(0, 18)
    in_passes = judged(crosscoder, pairs, memory=fixed + 2 * (bytes_needed(1, 18) - fixed))
    assert in_passes.moments is None and whole.moments is not None
    assert torch.equal(in_passes.verdicts, whole.verdicts)
    for name in ("own", "others", "shadow", "energy"):
        torch.testing.assert_close(getattr(in_passes, name), getattr(whole, name))


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"pairs": 1}, {"shadow": 0.0}, {"memory": -1.0}])
def test_impossible_thresholds_are_refused(wrong):
    with pytest.raises(ValueError, match=r"two pairs at least|must be positive"):
        FilterConfig(**wrong)


def test_a_stream_of_one_pair_is_refused(crosscoder):
    with pytest.raises(ValueError, match="fewer than two"):
        judge_exclusives(crosscoder, TensorStream([torch.zeros(1, d) for d in WIDTHS]))


def test_moments_are_those_of_the_pairs(crosscoder):
    pairs = pairs_with_a_difference()
    latents = torch.tensor([COPY, OWN, RARE])
    folds = collect(crosscoder, TensorStream(pairs), latents, outlier_multiple=0)
    assert [fold.pairs for fold in folds] == [8_000, 4_000]  # of three batches
    together = folds[0] + folds[1]
    x = torch.cat(pairs, 1).double()
    z = crosscoder.encode_sparse(pairs).to_dense()[:, latents].double()
    joint = torch.cov(torch.cat([x, z], 1).T, correction=0)
    torch.testing.assert_close(together.x_covariance, joint[:18, :18], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.covariance, joint[18:, :18], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.z_variance, joint.diagonal()[18:], rtol=1e-4, atol=1e-6)
    assert torch.equal(together.firings, (z > 0).sum(0))
    correlations = torch.from_numpy(together.correlations().toarray())
    fires_together = (z.T @ z) > 0
    expected = torch.corrcoef(z.T) * fires_together
    torch.testing.assert_close(correlations, expected, rtol=1e-3, atol=1e-4)


def test_a_latent_is_present_from_half_of_its_mean_weighted_by_itself():
    moments = LatentMoments(1, 5)
    for acts in ([4.0, 4.0, 1.0, 1.0], [2.0, 1.0]):  # the means up to there are 3.4 and 3
        rows = torch.arange(len(acts))
        code = SparseCode(torch.tensor(acts), torch.zeros_like(rows), rows, (5, 1))
        moments.update(torch.eye(5), code)
    assert moments.present_sum.tolist() == [10]
    assert moments.present_cross.tolist() == [[6, 4, 0, 0, 0]]
    assert moments.present_variance.item() == pytest.approx(36 / 10 - 1)
    expected = torch.tensor([[0.4, 0.2, -0.2, -0.2, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(moments.present_covariance, expected)


def test_only_whole_sources_of_outliers_are_left_out(crosscoder):
    pairs = pairs_with_a_difference()
    pairs[0][7] *= 1_000
    folds = collect(crosscoder, TensorStream([x[:4_000] for x in pairs]), torch.arange(3))
    kept = sum(fold.pairs for fold in folds)
    norms = [x[:4_000].norm(dim=1) for x in pairs]
    within = [
        torch.stack([n <= 2 * n.median() for n in (a[part], b[part])]).all(0)
        for a, b in [norms]
        for part in (slice(0, 2_000), slice(2_000, 4_000))
    ]
    assert kept == sum(int(w.sum()) for w in within) < 4_000


def test_the_share_predicted_is_that_of_a_regression_judged_on_other_pairs():
    generator = torch.Generator().manual_seed(0)
    halves = []
    for _ in range(2):
        x = torch.randn(500, 6, generator=generator)
        z = (x[:, :3].sum(1) + torch.randn(500, generator=generator)).relu()
        halves.append((x, z))
    moments = []
    for x, z in halves:
        rows = (z > 0).nonzero()[:, 0]
        code = SparseCode(z[rows], torch.zeros_like(rows), rows, (500, 1))
        one = LatentMoments(1, 6)
        one.update(x, code)
        moments.append(one)
    (x, z), (x_test, z_test) = halves
    design = torch.cat([x[:, 1:5], torch.ones(500, 1)], 1).double()
    weights = torch.linalg.lstsq(design, z[:, None].double()).solution[:4, 0]
    predicted = x_test[:, 1:5].double() @ weights
    error = z_test - predicted
    expected = 1 - error.var() / z_test.double().var()
    found = predicted_share(*moments, [slice(1, 3), slice(3, 5)], ridge=1e-9)
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)
