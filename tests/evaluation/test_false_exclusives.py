"""The filter on latents whose meaning is known, and its regressions against plain ones."""

import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.evaluation import false_exclusives
from sparsify_crosscoder.evaluation.false_exclusives import (
    FilterConfig,
    judge_exclusives,
)
from sparsify_crosscoder.evaluation.latent_moments import (
    BATCH_PAIRS,
    Encoded,
    LatentMoments,
    bytes_needed,
    collect,
)
from sparsify_crosscoder.evaluation.verdicts import Verdict
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
    found = judged(crosscoder, pairs_with_a_difference(), min_firings=200)
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
        "unclear": 0,
    }


def add_a_rare_event(crosscoder, pairs, count):
    """Something that both sources see on a few pairs, and nothing else, which RARE fires on."""
    rows = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(4))[:count]
    pairs[0][rows, 7] += 5
    pairs[1][rows, 9] += 5
    with torch.no_grad():
        crosscoder.encoder.weights[0][RARE].zero_()
        crosscoder.encoder.weights[0][RARE, 7] = 1.0


def test_a_rare_latent_that_the_others_predict_is_judged_without_a_number_of_firings(crosscoder):
    pairs = pairs_with_a_difference()
    add_a_rare_event(crosscoder, pairs, 40)
    found = judged(crosscoder, pairs)
    assert found.firings[RARE] == 40
    assert found.verdicts[RARE] == Verdict.PREDICTABLE and found.firings_needed[RARE] == 0
    # Its R2 is small as it is rare; as if it fired on 1% of the pairs, it is not.
    assert found.own[RARE] < found.measured.own_at_rate.value[RARE]
    assert found.measured.margin.value[RARE] > 2 * found.measured.margin.error[RARE]
    pairs[1][:, 9] = pairs_with_a_difference()[1][:, 9]
    alone = judged(crosscoder, pairs)
    assert alone.verdicts[RARE] == Verdict.KEPT and alone.score[RARE] > 0.8


def test_every_score_says_something_and_rows_say_why(crosscoder):
    rows = judged(crosscoder, pairs_with_a_difference(), min_firings=200).rows()
    assert [row["latent"] for row in (rows[0], rows[-1])] == [OWN, RARE]
    scores = [row["score"] for row in rows[:-1]]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.8
    reasons = {row["latent"]: row["reason"] for row in rows}
    assert "does not say that they do the same" in reasons[COPY]
    assert "too few pairs" in reasons[RARE] and "suffice" in reasons[RARE]
    assert rows[-1]["firings_needed"] == 200
    for row in rows:
        low, high = row["scaling_error_interval"]
        assert low <= row["scaling_error_ratio"] <= high
    by_latent = {row["latent"]: row for row in rows}
    assert by_latent[OWN]["scaling_error_ratio"] < 0.1
    assert by_latent[COPY]["scaling_error_interval"][0] > 0.5


def test_a_latent_that_its_own_source_does_not_predict_is_not_scorable(crosscoder):
    pairs = pairs_with_a_difference()
    # The far tail of a normal distribution: only a little of it is linear.
    with torch.no_grad():
        crosscoder.encoder.weights[0][DEAF].zero_()
        crosscoder.encoder.weights[0][DEAF, 7] = 1.0
        crosscoder.encoder.bias[DEAF] = -2.5
    pairs[0][:, 7] = torch.randn(PAIRS, generator=torch.Generator().manual_seed(1))
    found = judged(crosscoder, pairs, min_own=0.3)
    assert found.verdicts[DEAF] == Verdict.NOT_LINEAR
    assert not Verdict(int(found.verdicts[DEAF])).scorable


def test_a_latent_that_only_the_others_predict_is_predictable(crosscoder):
    pairs = pairs_with_a_difference()
    # An event at which the first source's tail is read, and which only the second source has.
    noise = torch.randn(PAIRS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        crosscoder.encoder.weights[0][DEAF].zero_()
        crosscoder.encoder.weights[0][DEAF, 7] = 1.0
        crosscoder.encoder.bias[DEAF] = -2.5
    pairs[0][:, 7] = noise
    alone = judged(crosscoder, pairs, min_own=0.3)
    pairs[1][:, 9] = (noise > 2.5).float()
    found = judged(crosscoder, pairs, min_own=0.3)
    assert alone.verdicts[DEAF] == Verdict.NOT_LINEAR
    assert found.verdicts[DEAF] == Verdict.PREDICTABLE
    assert found.own[DEAF] < 0.3 < found.others[DEAF]


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
    for name in ("own", "others", "shadow", "score", "energy"):
        torch.testing.assert_close(getattr(in_passes, name), getattr(whole, name))
    assert [r["latent"] for r in in_passes.rows()] == [r["latent"] for r in whole.rows()]


def test_more_pairs_are_read_while_latents_cannot_be_judged(crosscoder, monkeypatch):
    monkeypatch.setattr(false_exclusives, "FILTER_PAIRS", BATCH_PAIRS)
    pairs = pairs_with_a_difference()
    add_a_rare_event(crosscoder, pairs, 120)
    assert judged(crosscoder, pairs).read == BATCH_PAIRS
    more = judged(crosscoder, pairs, min_firings=60)
    assert more.read == 2 * BATCH_PAIRS and more.firings[RARE] >= 60
    # Reading on comes to the same as reading so many at once.
    at_once = collect(
        crosscoder,
        TensorStream(pairs),
        torch.arange(4),
        num_pairs=2 * BATCH_PAIRS,
        outlier_multiple=0,
    )
    assert torch.equal(at_once.firings, more.firings)
    ended = judged(crosscoder, pairs, min_firings=5_000)
    assert ended.read == PAIRS and ended.verdicts[RARE] == Verdict.TOO_RARE


def test_texts_that_repeat_themselves_are_not_taken_for_evidence(crosscoder):
    pairs = pairs_with_a_difference()
    few = torch.randint(PAIRS // 100, (PAIRS,), generator=torch.Generator().manual_seed(3))
    repeated = [x[few] for x in pairs]
    cfg = FilterConfig(outlier_multiple=0)
    candidates = [torch.arange(4), torch.tensor([], dtype=torch.long)]
    errors = []
    for text_ids in (None, few):
        stream = TensorStream(repeated, seed=0, text_ids=text_ids)
        found = judge_exclusives(crosscoder, stream, cfg, candidates=candidates)
        errors.append(found.measured.others_at_rate.error[OWN].item())
    assert errors[1] > 2 * errors[0]


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
    moments = collect(crosscoder, TensorStream(pairs), latents, outlier_multiple=0)
    assert moments.fold_pairs.tolist() == [PAIRS / 8] * 8
    x = torch.cat(pairs, 1).double()
    z = crosscoder.encode_sparse(pairs).to_dense()[:, latents].double()
    joint = torch.cov(torch.cat([x, z], 1).T, correction=0)
    torch.testing.assert_close(moments.x_covariance, joint[:18, :18], rtol=1e-4, atol=1e-5)
    found = moments.products("cross", torch.arange(3)).sum(0).double() / PAIRS
    torch.testing.assert_close(found, joint[18:, :18], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.z_variance, joint.diagonal()[18:], rtol=1e-4, atol=1e-6)
    rest = z[PAIRS // 8 :]
    without = moments.variances("cross")[1]
    torch.testing.assert_close(without, rest.var(0, correction=0), rtol=1e-4, atol=1e-6)
    assert torch.equal(moments.firings, (z > 0).sum(0))
    left = x - crosscoder.normalize(crosscoder(torch.cat(pairs, 1)).sae_out).double()
    torch.testing.assert_close(
        moments.error_cross.sum(0).double(), z.T @ left, rtol=1e-3, atol=1e-2
    )
    correlations = torch.from_numpy(moments.correlations().toarray())
    fires_together = (z.T @ z) > 0
    expected = torch.corrcoef(z.T) * fires_together
    torch.testing.assert_close(correlations, expected, rtol=1e-3, atol=1e-4)


def batch(x, code, texts=None):
    return Encoded(x, code, torch.zeros_like(x), texts, len(x))


def test_a_latent_is_present_from_half_of_its_mean_weighted_by_itself():
    moments = LatentMoments(1, 5, num_folds=1)
    for acts in ([4.0, 4.0, 1.0, 1.0], [2.0, 1.0]):  # the means up to there are 3.4 and 3
        rows = torch.arange(len(acts))
        code = SparseCode(torch.tensor(acts), torch.zeros_like(rows), rows, (5, 1))
        moments.update(batch(torch.eye(5), code))
    assert moments.present_sums.tolist() == [[10]]
    assert moments.present_cross.tolist() == [[[6, 4, 0, 0, 0]]]
    assert moments.variances("present_cross")[0].item() == pytest.approx(36 / 10 - 1)
    expected = torch.tensor([[[4.0, 2.0, -2.0, -2.0, -2.0]]])
    torch.testing.assert_close(moments.products("present_cross", torch.arange(1)), expected)


def test_pairs_of_a_text_are_in_one_fold():
    moments = LatentMoments(1, 2, num_folds=3)
    for texts in ([7, 7, 5, 9], [5, 8, 7, 7]):
        rows = torch.arange(4)
        code = SparseCode(torch.ones(4), torch.zeros_like(rows), rows, (4, 1))
        moments.update(batch(torch.ones(4, 2), code, torch.tensor(texts)))
    # Texts 5, 7, 9 and then 8 are dealt out in turn.
    assert moments.fold_pairs.tolist() == [3, 4, 1]
    assert moments.fired[:, 0].tolist() == [3, 4, 1]


def test_only_whole_sources_of_outliers_are_left_out(crosscoder):
    pairs = pairs_with_a_difference()
    pairs[0][7] *= 1_000
    moments = collect(crosscoder, TensorStream([x[:4_000] for x in pairs]), torch.arange(3))
    norms = [x[:4_000].norm(dim=1) for x in pairs]
    within = [
        torch.stack([n[part] <= 2 * n[part].median() for n in norms]).all(0)
        for part in (slice(start, start + 500) for start in range(0, 4_000, 500))
    ]
    assert moments.pairs == sum(int(w.sum()) for w in within) < moments.read == 4_000
