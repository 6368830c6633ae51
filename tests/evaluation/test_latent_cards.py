"""A latent's card: what was measured of it, and "not known" for the rest."""

import json
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder.evaluation.clusters import clusters
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.filter import Filtered, FilterRecord
from sparsify_crosscoder.evaluation.latent_card import UNKNOWN, LatentCard
from sparsify_crosscoder.evaluation.latent_cards import Recurrence, cards_of, recurrences
from tests.support.clusters import PAIRS, copied_latents, filtered

ROW = {
    "rank": 3,
    "kind": "shared",
    "score": 0.4,
    "latent": 12,
    "members": [{"kind": "exclusive", "latent": 2, "source": 0}],
    "firings": 80,
    "pairs": PAIRS,
}


@pytest.fixture(scope="module")
def crosscoder():
    return copied_latents()


@pytest.fixture(scope="module")
def measured(crosscoder):
    return filtered(crosscoder)


@pytest.fixture(scope="module")
def found(crosscoder, measured) -> dict:
    """What the filter says, as a file has it."""
    listed = clusters(crosscoder, measured)
    made = Filtered("dfc", FilterConfig(), measured, listed, [], [{}, {}])
    return json.loads(json.dumps(made.to_dict()))


def compared(found: dict, **parts) -> dict:
    """Three runs of which the first is the one in question."""
    places = [{"latents": one["latents"]} for one in found["clusters"]]
    runs = {"a": "runs/a", "b": "runs/b", "c": "runs/c"}
    return {"runs": runs, "clusters": {"a": places, "b": [], "c": []}, **parts}


def test_a_card_has_what_the_filter_measured_with_intervals(crosscoder, measured, found):
    cards = cards_of(crosscoder, FilterRecord.of(found))
    assert [card.latent for card in cards] == list(range(crosscoder.num_latents))
    for place, latent in enumerate(measured.latents.tolist()):
        card, score = cards[latent], measured.measured.score
        value, error = score.value[place].item(), score.error[place].item()
        assert card.filter_score == value
        assert card.filter_score_low == pytest.approx(max(value - 1.96 * error, 0))
        assert card.filter_score_high == pytest.approx(min(value + 1.96 * error, 1))
        assert card.scaling_error_low <= card.scaling_error_ratio <= card.scaling_error_high
        assert card.pairs_present == measured.firings[place] and card.pairs_read == PAIRS
    assert "kept, score" in cards[0].lines()[1].said


def test_the_error_of_how_often_a_latent_fires_is_that_of_independent_pairs(measured):
    share = measured.firings.double() / PAIRS
    binomial = (share * (1 - share) / PAIRS).sqrt()
    ratio = measured.measured.presence.error / binomial
    assert torch.allclose(measured.measured.presence.value, share)
    assert 0.6 < ratio.mean() < 1.5  # eight folds tell it to a quarter


def test_what_nobody_looked_at_is_not_known(crosscoder):
    (card, *_) = cards_of(crosscoder, None)
    assert {one.said for one in card.lines()} == {UNKNOWN}
    assert card.text().count(UNKNOWN) == len(card.lines())
    silent = LatentCard(1, filter_verdict="kept", filter_score=0.0, pairs_present=0, pairs_read=9)
    lines = dict(silent.lines())
    assert lines["fires"] == "on 0 of 9 pairs (0.000%)" and lines["filter"] == "kept, score 0.00"


def test_a_filter_of_an_earlier_version_leaves_errors_unknown(crosscoder, found):
    old = json.loads(json.dumps(found))
    for row in old["latents"]:
        for name in ("score_error", "presence_error", "scaling_error_interval"):
            del row[name]
    card = cards_of(crosscoder, FilterRecord.of(old))[0]
    assert card.listed is None and card.difference is None
    assert (card.filter_score_low, card.presence_error, card.scaling_error_low) == (None,) * 3
    assert card.filter_score == next(r["score"] for r in old["latents"] if r["latent"] == 0)
    assert "±" not in card.text()


def test_a_latent_has_the_rank_and_q_of_the_entry_that_it_is_in(crosscoder, found):
    rated = {**ROW, "q_value": 0.05, "q_interval": [0.02, 0.2]}
    tested = {"verified": False, "sentences": ["not verified: one.", "not verified: two."]}
    record = FilterRecord.of({**found, "rows": [{**rated, "verification": tested}]})
    cards = cards_of(crosscoder, record)
    for latent in (2, 12):
        lines = dict(cards[latent].lines())
        assert lines["list of differences"] == "entry 3 (shared), score 0.40"
        assert lines["q"] == "0.05 (0.02 to 0.20)"
        assert lines["cause"] == "not verified: one. not verified: two."
    assert cards[12].presence == 80 / PAIRS  # the filter does not look at shared ones
    assert cards[2].pairs_present != 80
    assert dict(cards[0].lines())["list of differences"] == "in none of its entries"
    unrated = cards_of(crosscoder, FilterRecord.of({**found, "rows": [ROW]}))[12]
    assert dict(unrated.lines())["q"] == UNKNOWN


def test_a_latent_recurs_as_its_cluster_does_and_so_do_copies_of_that(crosscoder, found):
    differences = [
        {"members": {"a": 0, "c": 4}, "copies": {"a": [2]}},
        {"members": {"a": 1}, "copies": {}},
        {"members": {"b": 0, "c": 1}, "copies": {}},
    ]
    told = compared(found, differences=differences)
    told["clusters"]["a"] = [{"latents": [0, 1]}, {"latents": [6]}, {"latents": [2]}]
    again = recurrences(told, Path("runs/a"))
    twice = dict.fromkeys((0, 1, 2), Recurrence(2, 3))
    assert again == twice | {6: Recurrence(1, 3)}
    cards = cards_of(crosscoder, FilterRecord.of(found), recurring=again)
    assert dict(cards[0].lines())["other runs"] == "found by 2 of 3 runs"
    assert dict(cards[15].lines())["other runs"] == UNKNOWN
    assert recurrences(told, Path("runs/d")) == {}
    del told["clusters"]  # nor did earlier versions write them
    assert recurrences(told, Path("runs/a")) == {}


def test_of_several_seeds_of_one_run_the_one_that_is_asked_for_counts(found):
    clusters_of = compared(found)["clusters"]["a"]
    told = {
        "runs": {"a/seed0": "runs/a", "a/seed1": "runs/a"},
        "clusters": {"a/seed0": clusters_of[:1], "a/seed1": clusters_of[1:2]},
        "differences": [{"members": {"a/seed1": 0}}],
    }
    assert recurrences(told, Path("runs/a"), 0) == {}
    again = recurrences(told, Path("runs/a"), 1)
    assert list(again) == clusters_of[1]["latents"]
