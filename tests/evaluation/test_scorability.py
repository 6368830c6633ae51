import pytest
import torch

from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.filter import filter_crosscoder, filter_text
from sparsify_crosscoder.scorability import (
    Evidence,
    pairs_needed,
    rarity,
    rarity_line,
    too_little,
)
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
    evidence = [Evidence(20, 35)] * 9 + [Evidence(1, 10), Evidence(0, 10), Evidence(0, 10)]
    found = rarity(evidence, 1_000, 50_000)
    assert found == {
        "unjudged": 12,
        "silent": 2,
        "pairs": 1_000,
        "pairs_available": 50_000,
        "pairs_for_most": 1_750,
        "firings_needed": 35,
        "left_then": 3,
    }
    assert rarity_line(found) == (
        "12 fire too rarely on the 1,000 pairs read (2 of them on none); some 35 firings suffice "
        "for half of them, and --pairs 1800 for all but 3"
    )
    scarce = rarity_line(rarity(evidence, 1_000, 1_000))
    assert "some 1,800 pairs for all but 3, of which there are 1,000: harvest more" in scarce
    assert "--pairs" not in scarce
    assert rarity_line(rarity(evidence[:2], 1_000, 50_000)).endswith("for all")
    assert "whether they ever fire" in rarity_line(rarity([Evidence(0, 10)], 1_000, 50_000))


def test_a_latent_is_told_how_many_firings_suffice():
    assert too_little(Evidence(31, 40), 131_072) == (
        "it fires on 31 of the 131,072 pairs read; some 40 suffice, which takes 170,000"
    )
    assert (
        too_little(Evidence(0, 10), 500) == "it fires on 0 of the 500 pairs read, and 10 are needed"
    )


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
    assert f"fires on {fired} of the 400 pairs read; some 400 suffice" in rows[1]["reason"]
    assert rows[1]["firings_needed"] == 399
    assert rows[1]["pairs_needed"] == -(-399 * 400 // fired)
    assert "on 0 of the 400 pairs" in rows[0]["reason"] and rows[0]["pairs_needed"] is None
    for source, why in enumerate(result["not_scorable"]):
        assert why["too_rare"] == result["verdicts"][source]["too_rare"] > 0
        assert why["pairs"] == result["pairs"] == 400 and why["pairs_available"] == 500
    assert result["not_scorable"][0]["silent"] == 1
    printed = filter_text(result, ["A", "B"])
    assert "fire too rarely on the 400 pairs read (1 of them on none)" in printed
    assert "firings suffice for half of them" in printed


def test_latents_that_fire_too_rarely_to_be_judged_are_not_counted_as_such():
    crosscoder = make("dfc", {}).eval()
    crosscoder.threshold.fill_(1e-3)
    crosscoder.encoder.bias.data.fill_(-1e9)
    for latent, weight in ((0, 1.0), (1, 1.0), (8, 1.0)):
        crosscoder.encoder.bias.data[latent] = -0.5
        block = crosscoder.encoder.weights[0 if latent < 8 else 1].data
        block[latent % 8] = 0
        block[latent % 8, latent % 8] = weight
    data = [torch.zeros(12_000, d, dtype=torch.float64) for d in (7, 5)]
    data[0][:2, 0] = 1.0  # latent 0 fires on 2 of 12,000 pairs, less than 32 of 131,072
    data[0][:3, 1] = 1.0  # latent 1 on 3, which is more
    data[1][:, 0] = 1.0
    result = evaluate(crosscoder, TensorStream(data), outlier_multiple=0)
    assert result["exclusive_judgeable"] == [1, 1]
    assert evaluate(make("crosscoder", {}), TensorStream(data))["exclusive_judgeable"] == [None] * 2
