"""What a number says of how far to trust a report."""

import pyarrow as pa
import pytest

from delphi_adapters.explaining.features import schema
from delphi_adapters.report import FeatureDetail, Judgement, NullRate, trust
from delphi_adapters.report.statements import prompts_per_score, statements
from tests.support.report import (
    ROWS,
    detail,
    grafted,
    null_score,
    planted_recall,
    row,
    scored,
    small_report,
    unjudged_report,
)


def about(data):
    return {one.about: one for one in statements(data)}


@pytest.mark.parametrize(
    "value, up, down",
    [
        (0.9, "good", "bad"),
        (0.8, "good", "bad"),
        (0.7, "caution", "caution"),
        (0.5, "caution", "good"),
    ],
)
def test_levels_begin_at_their_limits(value, up, down):
    assert trust.graded(value, 0.8, 0.5) == up
    assert trust.graded(value, 0.5, 0.7) == down


def test_a_local_judge_asks_for_caution():
    assert trust.judge({"name": "small", "offline": True}).level == "caution"
    assert "small" in trust.judge({"name": "small", "offline": True}).number
    assert trust.judge({"name": "claude", "offline": False}).level == "good"
    assert trust.judge({}).number == "not known"


def test_without_a_judge_nothing_is_said_of_answers_and_scores():
    found = about(unjudged_report())
    assert found["The judge"].number == "none was asked"
    assert not [what for what in found if "Answers" in what or "blinded" in what]
    assert "Exclusivity scores" not in found
    against = found["Likeness of effects: alpha's latents against shared latents"]
    assert against.level == "caution"  # too few
    assert against.number.startswith("mean 0.35 of 2 against 0.65 of 2; less alike in 75% of pairs")


@pytest.mark.parametrize(
    "values, level",
    [
        ([0.1, 0.15, 0.2, 0.1, 0.12, 0.2], "good"),
        ([0.5, 0.75, 0.6, 0.85, 0.65, 0.7], "caution"),
        ([0.9, 0.95, 0.9, 0.92, 0.9, 0.97], "bad"),
    ],
)
def test_effects_have_to_be_less_alike_than_those_of_what_is_not_exclusive(values, level):
    nulls = [0.6, 0.75, 0.7, 0.8, 0.7, 0.65]
    assert trust.likeness_against_null("alpha", "shared", values, nulls).level == level
    assert trust.likeness_against_null("alpha", "shared", [], nulls) is None
    assert trust.likeness_against_null("alpha", "random", values, []).level == "caution"


def test_questions_that_were_not_asked_are_not_unanswered():
    states = ["ok"] * 18 + ["unparsable", "failed"] + [None] * 100
    one = trust.answered("flags", states, ("unparsable", "failed"))
    assert one.number == "2 of 20 without an answer (10.0%)"
    assert one.level == "caution"
    assert trust.answered("flags", [None], ("failed",)) is None


@pytest.mark.parametrize(
    "scores, level", [([0.5, 0.55], "bad"), ([0.65], "caution"), ([0.9], "good")]
)
def test_explanations_are_measured_against_a_coin(scores, level):
    assert trust.detection(scores).level == level


def test_explanations_that_fail_on_weaker_passages_are_not_good():
    held = trust.detection([0.9, 0.9], [0.85], [0.8])
    assert held.level == "good" and "0.85 of 1 at ranks 11 to 20, 0.80 of 1" in held.number
    assert trust.detection([0.9], [0.85], []).level == "good"
    narrow = trust.detection([0.9], [0.85], [0.55])
    assert narrow.level == "bad" and "too narrow" in narrow.meaning
    assert trust.detection([0.65], [0.9], [0.9]).level == "caution"


def test_no_finds_among_few_are_no_good_news():
    assert trust.null_rate(NullRate("x", 0, 4)).level == "bad"
    assert trust.null_rate(NullRate("x", 0, 40)).level == "caution"
    assert trust.null_rate(NullRate("x", 0, 400)).level == "good"
    assert trust.null_rate(NullRate("x", 390, 400)).level == "bad"
    assert trust.null_rate(NullRate("x", 0, 0)).level == "caution"
    assert trust.null_rate(NullRate("x", 3, 396)).number == "3 of 396 (0.8%, at most 2.2%)"


def test_a_list_is_trusted_as_far_as_it_has_what_was_planted():
    assert trust.power(planted_recall(12, 12)).level == "good"
    assert trust.power(planted_recall(6, 12)).level == "caution"
    assert trust.power(planted_recall(1, 12)).level == "bad"
    assert trust.power(planted_recall(12, 12, without=2)).level == "bad"
    assert trust.power(planted_recall(6, 12)).number == (
        "6 of 12 planted differences (25% to 75%); with nothing planted 0 of 12"
    )
    assert about(small_report())["What would have been found"].number == "not known"
    planted = about(small_report(power=planted_recall(12, 12)))
    assert planted["What would have been found"].level == "good"


def test_latents_that_score_as_shared_ones_do_are_no_evidence():
    low, high = [1.0, 1.5, 2.0, 1.0, 1.5], [4.0, 4.5, 5.0, 4.0, 4.5]
    better = trust.against_null("alpha", "shared", high, low, True)
    assert better.level == "good"
    assert "difference +3.00" in better.number and "100% of pairs" in better.number
    unlike = trust.against_null("alpha", "shared", high, low, False)
    assert unlike.level == "caution" and "not chosen alike" in unlike.meaning
    assert trust.against_null("alpha", "shared", low, low, True).level == "bad"
    assert trust.against_null("alpha", "random", low, high, True).level == "bad"
    wide = trust.against_null("alpha", "random", [1, 5, 1, 5, 5], [1, 5, 1, 5, 1], True)
    assert wide.level == "caution"


@pytest.mark.parametrize("known", [True, False])
def test_latents_are_compared_with_shared_ones_that_pass_the_same_test(known):
    rows = [row(n, interpretable=n < 6, **scored(4.0 + n / 20)) for n in range(12)]
    passed = [n < 6 if known or n < 3 else None for n in range(12)]  # of some it may be known
    nulls = [null_score("shared", 0, 1 + n / 20, interpretable=passed[n]) for n in range(12)]
    nulls += [null_score("random", 0, 1.5) for _ in range(7)]
    table = pa.Table.from_pylist(rows, schema=schema())
    data = small_report(features=table, detailed=[0], null_scores=nulls, similar=[])
    found = {one.about: one for one in statements(data)}
    shared = found["Exclusivity of alpha's latents against shared latents"]
    random = found["Exclusivity of alpha's latents against random directions"]
    assert random.level == "good" and "of 6 against 1.50 of 7" in random.number
    if known:
        assert shared.level == "good" and "4.12 of 6 against 1.12 of 6" in shared.number
    else:
        assert shared.level == "caution" and "of 12 against" in shared.number


def test_few_nulls_never_make_a_good_level():
    assert trust.against_null("alpha", "shared", [5.0] * 50, [1.0] * 4, True).level == "caution"
    assert trust.against_null("alpha", "shared", [5.0] * 50, [], True).level == "caution"
    assert trust.against_null("alpha", "shared", [], [1.0] * 50, True) is None


def test_prompts_that_differ_as_latents_do_make_ranks_worthless():
    scores = [1.0, 3.0, 5.0]
    assert trust.spread(scores, [0.1] * 3, 3).level == "good"
    assert trust.spread(scores, [2.0] * 3, 1).level == "bad"
    assert trust.spread(scores, [2.0] * 3, 8).level == "good"  # means of eight prompts
    assert trust.spread([1.0], [1.0], 3) is None


def test_blinded_scores_are_held_against_the_others():
    scores = [1.0, 2.0, 3.0, 4.0, 5.0]
    same = trust.blinding(scores, scores)
    assert same.level == "good" and "rank correlation 1.00" in same.number
    assert trust.blinding(scores, scores[::-1]).level == "bad"
    assert trust.blinding(scores, [x - 0.9 for x in scores]).level == "caution"  # a shift
    assert trust.blinding(scores[:2], scores[:2]).level == "caution"  # too few
    assert trust.blinding([], []).number == "not done"


def test_stitching_is_judged_without_the_largest_dimensions_where_that_is_known():
    assert trust.stitching("a", "b", {"r2": 0.9}).level == "good"
    assert trust.stitching("a", "b", {"r2": 0.9, "r2_without_top5": 0.3}).level == "bad"
    one = trust.stitching("a", "b", {"r2": 0.71, "r2_closed_form": 0.72, "r2_without_top5": 0.5})
    assert one.level == "caution"
    assert one.number == (
        "held-out R2 0.71, 0.50 without the five largest dimensions; closed form 0.72"
    )


def test_pairs_are_counted_per_latent_and_for_what_is_rare():
    assert trust.pairs(100_000_000, 131_072).level == "good"
    assert trust.pairs(716_800, 8_192).level == "caution"
    assert trust.pairs(174_644, 8_192).level == "bad"
    assert trust.pairs(174_644, 64).level == "bad"  # a small dictionary does not make up for it
    assert trust.pairs(716_800, 8_192).number == (
        "716,800, 88 per latent (the paper: 763); what is on one in 3,584 was seen 200 times"
    )


def test_what_the_filter_cannot_score_counts_too_rare_and_not_linear():
    one = trust.not_scorable("a", {"kept": 1, "too_rare": 2, "not_linear": 1})
    assert (one.number, one.level) == ("3 of 4 not scorable (75%)", "bad")
    assert trust.not_scorable("a", {"kept": 0}) is None


def test_dead_latents_and_reconstruction():
    assert [trust.dead("a", x).level for x in (0.1, 0.3, 0.9)] == ["good", "caution", "bad"]
    assert trust.dead("a", None) is None
    assert trust.reconstruction("a", 0.9, 0.4).level == "bad"  # five dimensions hold most of it
    assert trust.reconstruction("a", 0.9, None).level == "good"
    assert trust.reconstruction("a", None, None) is None


def test_what_a_model_loses_by_the_reconstruction():
    found = about(small_report())["Next tokens by alpha's reconstruction"]
    assert found.level == "good"
    assert found.number == (
        "in place of the activation at 75% of the tokens it loses +0.25 nats a token, and recovers "
        "95% (94% to 96%) of what the mean loses"
    )
    levels = [trust.grafted("a", grafted("a", share)).level for share in (0.8, 0.6, -0.2)]
    assert levels == ["caution", "bad", "bad"]
    assert not [what for what in about(small_report(grafted={})) if "Next tokens" in what]


def test_one_run_says_nothing_of_stability():
    assert trust.stability(None).level == "caution"
    runs = {"0": "", "1": ""}
    twice, once = {"members": {"0": 0, "1": 0}}, {"members": {"0": 1}}
    found = trust.stability({"runs": runs, "differences": [twice, once]})
    assert (found.number, found.level) == ("1 of 2 differences in two of 2 runs or more", "good")
    assert trust.stability({"runs": runs, "differences": [twice] + [once] * 9}).level == "bad"
    assert trust.stability({"runs": runs, "differences": []}).level == "caution"


def test_differences_that_match_no_more_often_than_different_things_are_no_evidence():
    runs, twice = {"0": "", "1": ""}, {"members": {"0": 0, "1": 0}}
    found = {
        **{"runs": runs, "differences": [twice] * 9, "next_run": {"low": 0.5}},
        **{"own_run": {"matched": 1, "of": 10}, "nulls": {}, "between_nulls": None},
    }
    one = trust.stability(found)
    assert one.level == "good" and one.number.endswith("different things up to 10% match")
    crowded = trust.stability({**found, "nulls": {"null": {"matched": 6, "of": 10}}})
    assert crowded.level == "bad" and "no more often than different things" in crowded.meaning


def test_a_report_makes_all_its_statements_bad_ones_first():
    found = statements(small_report())
    assert [one.level for one in found] == sorted(
        (one.level for one in found), key=["bad", "caution", "good"].index
    )
    by_name = about(small_report())
    assert by_name["Answers: flags"].number == "1 of 3 without an answer (33.3%)"
    assert by_name["Exclusivity scores"].number == (
        "2 latents, 2 shared latents, 1 random directions"
    )
    assert by_name["Stitching beta to alpha"].level == "bad"
    assert by_name["Filter on alpha"].number == "1 of 3 not scorable (33%)"
    assert by_name["Dead exclusive latents of alpha"].number == "33%"


def test_latents_are_compared_with_nulls_of_their_own_model():
    passed = {"interpretable": True}
    rows = [row(i, **passed, **scored(4.0 + i / 10)) for i in range(8)]
    rows += [row(8 + i, source=1, **passed, **scored(1.0)) for i in range(8)]
    nulls = [null_score("shared", s, 2.0 + i / 10, **passed) for s in (0, 1) for i in range(8)]
    table = pa.Table.from_pylist(rows, schema=schema())
    by_name = about(small_report(features=table, detailed=[], null_scores=nulls))
    assert by_name["Exclusivity of alpha's latents against shared latents"].level == "good"
    assert by_name["Exclusivity of beta's latents against shared latents"].level == "bad"


def test_without_steering_a_report_says_so():
    rows = [{k: v for k, v in one.items() if "exclusivity" not in k} for one in ROWS]
    table = pa.Table.from_pylist(rows, schema=schema())
    by_name = about(small_report(features=table, null_scores=[]))
    assert by_name["Exclusivity scores"].number == "none"
    assert "Judge blinded" not in by_name


def test_what_is_missing_makes_no_statement_and_no_error():
    bare = small_report(summary={}, judge={}, filter={}, stitching={}, stability=None, nulls=[])
    by_name = about(bare)
    assert by_name["The judge"].level == by_name["Stability"].level == "caution"
    assert not [
        name for name in by_name if name.startswith(("Null", "Filter", "Dead", "Stitching"))
    ]


def test_prompts_of_a_score_are_counted_from_the_judgements():
    assert prompts_per_score(small_report()) == 2
    assert prompts_per_score(small_report(details=lambda _: None)) is None
    one = FeatureDetail(0, judgements=[Judgement("interpretability", "p", 3, None, "ok")])
    assert prompts_per_score(small_report(details=lambda _: one)) is None
    assert detail(0).judgements[2].status == "unparsable"
