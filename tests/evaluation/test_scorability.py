import pytest
import torch

from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.filter import filter_crosscoder, filter_text
from sparsify_crosscoder.scorability import pairs_needed, rarity, rarity_line
from sparsify_crosscoder.training.metrics import evaluate
from tests.support.crosscoders import make
from tests.support.streams import TensorStream


@pytest.mark.parametrize(
    ("firings", "pairs", "needed"), [(50, 1_000, 4_000), (3, 1_000, 66_667), (200, 1_000, 1_000)]
)
def test_the_pairs_that_200_firings_take(firings, pairs, needed):
    assert pairs_needed(firings, pairs, 200) == needed
    assert pairs_needed(0, pairs, 200) is None


def test_what_would_let_nine_in_ten_be_judged():
    # Nine that fire on 20 of 1,000 pairs, one that fires once, and two that never do.
    firings = [20] * 9 + [1, 0, 0]
    found = rarity(firings, 1_000, 200, 50_000)
    assert found == {
        "too_rare": 12,
        "silent": 2,
        "min_firings": 200,
        "pairs": 1_000,
        "pairs_available": 50_000,
        "pairs_for_most": 10_000,
        "min_firings_for_most": 20,
        "left_then": 3,
    }
    assert rarity_line(found) == (
        "12 fire on fewer than 200 of the 1,000 pairs read (2 of them on none); with --pairs 10000 "
        "all but 3 could be judged, or with --min_firings 20, less surely"
    )
    scarce = rarity_line(rarity(firings, 1_000, 200, 1_000))
    assert "some 10,000 pairs, of which there are 1,000, so harvest more" in scarce
    assert "--pairs" not in scarce and "--min_firings 20" in scarce
    assert "all could be judged" in rarity_line(rarity([20, 20], 1_000, 200, 50_000))
    assert "whether they ever fire" in rarity_line(rarity([0, 0], 1_000, 200, 50_000))


def test_the_filter_says_why_latents_have_no_score():
    crosscoder = make("dfc", {"k": 10}).eval()
    crosscoder.threshold.fill_(1e-3)
    crosscoder.encoder.bias.data[:2] = torch.tensor([-1e9, -0.8])  # never, and now and then
    data = [torch.randn(500, d, dtype=torch.float64) for d in (7, 5)]
    cfg = FilterConfig(pairs=400, min_firings=399, outlier_multiple=0)
    result = filter_crosscoder(crosscoder, TensorStream(data), cfg).to_dict()
    rows = {row["latent"]: row for row in result["latents"]}
    dense = crosscoder.encode_sparse([x[TensorStream(data).order(0)[:400]] for x in data])
    fired = int((dense.indices == 1).sum())
    assert 0 < fired < 399 and rows[1]["firings"] == fired
    assert f"fires on {fired} of the 400 pairs read, and 399 are needed" in rows[1]["reason"]
    assert rows[1]["pairs_needed"] == -(-399 * 400 // fired)
    assert "on 0 of the 400 pairs" in rows[0]["reason"] and rows[0]["pairs_needed"] is None
    for source, why in enumerate(result["not_scorable"]):
        assert why["too_rare"] == result["verdicts"][source]["too_rare"] > 0
        assert why["pairs"] == result["pairs"] == 400 and why["pairs_available"] == 500
    assert result["not_scorable"][0]["silent"] == 1
    printed = filter_text(result, ["A", "B"])
    assert "fire on fewer than 399 of the 400 pairs read (1 of them on none)" in printed
    assert "--min_firings" in printed


def test_latents_that_fire_too_rarely_to_be_judged_are_not_counted_as_such():
    crosscoder = make("dfc", {}).eval()
    crosscoder.threshold.fill_(1e-3)
    crosscoder.encoder.bias.data.fill_(-1e9)
    for latent, weight in ((0, 1.0), (1, 1.0), (8, 1.0)):
        crosscoder.encoder.bias.data[latent] = -0.5
        block = crosscoder.encoder.weights[0 if latent < 8 else 1].data
        block[latent % 8] = 0
        block[latent % 8, latent % 8] = weight
    data = [torch.zeros(2_000, d, dtype=torch.float64) for d in (7, 5)]
    data[0][:3, 0] = 1.0  # latent 0 fires on 3 of 2,000 pairs, less than 200 of 131,072
    data[0][:4, 1] = 1.0  # latent 1 on 4, which is more
    data[1][:, 0] = 1.0
    result = evaluate(crosscoder, TensorStream(data), outlier_multiple=0)
    assert result["exclusive_judgeable"] == [1, 1]
    assert evaluate(make("crosscoder", {}), TensorStream(data))["exclusive_judgeable"] == [None] * 2
