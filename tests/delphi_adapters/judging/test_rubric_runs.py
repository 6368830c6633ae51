"""Rating every answer by a rubric: what is asked, what is kept, and the curves."""

import asyncio
import json
import re

import numpy as np
import pytest

from delphi_adapters.clients import AnthropicClient, BudgetExceeded, RetryPolicy
from delphi_adapters.judging.bootstrap import difference, interval
from delphi_adapters.judging.rating import Rating
from delphi_adapters.judging.rubric_runs import (
    Answers,
    RubricResult,
    evaluate,
    item_name,
    load_items,
)
from delphi_adapters.judging.rubrics import Rubric
from tests.support.messages_server import error, message
from tests.support.rubric import tides

RUBRIC = tides(("What is new?", "And the sea?", "Where to?"), (2.0, 0.0, 1.0))


class CountingJudge:
    """Its score is one more than the number of tides in the answer, up to 5."""

    def __call__(self, body):
        question = body["messages"][0]["content"]
        code = re.search("code of this request is (\\w+)", question)[1]
        answer = question.partition(": answer")[2]
        lines = [
            f"[REASON {code}]: I counted.",
            f"[TIDE {code}]: {min(1 + answer.count('tide'), 5)}",
            f"[COHERENCE {code}]: {1 if '###' in answer else 5}",
        ]
        return message("\n".join(lines))


def texts(*tides):
    """Answers to each prompt at each of the rubric's strengths, with so many tides."""
    return [[f"{prompt} {'tide ' * n}" for n in tides] for prompt in RUBRIC.prompts]


@pytest.fixture
def client(server):
    server.answer = CountingJudge()
    return AnthropicClient(
        "claude-test", base_url=server.url, retries=RetryPolicy(attempts=1), concurrency=2
    )


def run(client, folder, answers, rubric=RUBRIC, **options):
    return asyncio.run(evaluate(client, rubric, answers, folder, **options))


def test_scores_are_those_of_the_answer_at_its_prompt_strength_and_model(client, tmp_path):
    answers = {"steered": Answers(texts(4, 0, 2)), "other": Answers(texts(0, 0, 0))}
    result = run(client, tmp_path, answers)
    assert result.scores("steered", "TIDE").tolist() == [[5, 1, 3]] * 3
    assert result.scores("other", "TIDE").tolist() == [[1, 1, 1]] * 3
    curve = result.curves("TIDE")["steered"]
    assert curve.strengths == [0, 1, 2]  # rising, whatever the rubric's order
    assert curve.mean == [1, 3, 5]
    assert curve.n == [3, 3, 3]
    assert result.counts()["steered"] == {"ok": 9, "unparsable": 0, "failed": 0}


def test_intervals_are_over_prompts(client, tmp_path):
    rows = texts(0, 0, 0)
    rows[0][0], rows[1][0] = "tide", "tide tide tide"
    result = run(client, tmp_path, {"m": Answers(rows)})
    curve = result.curves("TIDE")["m"]
    expected = interval([2, 4, 1])
    assert (curve.mean[2], curve.low[2], curve.high[2]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_changes_are_paired_by_prompt():
    def rated(rows):
        return [[Rating("ok", {"TIDE": a, "COHERENCE": 5}) for a in row] for row in rows]

    # Prompts differ much, strengths always by one.
    ratings = {"a": rated([[2, 1, 1], [4, 3, 3], [5, 4, 4]]), "b": rated([[1] * 3] * 3)}
    result = RubricResult(RUBRIC, ratings)
    change = result.against_unsteered("TIDE")["a"]
    assert change.mean == [0, 0, 1]
    assert change.low[0] == change.high[0] == 0
    paired = difference([1, 3, 4], [2, 4, 5])
    assert (change.low[2], change.high[2]) == (paired.low, paired.high)
    assert result.between("TIDE", "a", "b").mean == pytest.approx([-5 / 3, -5 / 3, -8 / 3])
    without = RubricResult(RUBRIC.limited(strengths=[1, 2, 3]), ratings)
    assert without.against_unsteered("TIDE") == {}


def test_the_judge_sees_neither_model_nor_strength(client, server, tmp_path):
    run(client, tmp_path, {"Llama-Secret": Answers(texts(0, 1, 2))})
    for body in server.bodies:
        assert "Secret" not in json.dumps(body) and "strength" not in json.dumps(body).lower()


def test_equal_answers_to_a_prompt_are_paid_once(client, server, tmp_path):
    run(client, tmp_path, {"a": Answers(texts(1, 1, 1)), "b": Answers(texts(1, 1, 1))})
    assert len(server.bodies) == 3
    assert len(load_items(tmp_path)) == 18


def test_whether_an_answer_was_cut_is_said(client, server, tmp_path):
    ended = [[True, True, False]] * 3
    run(client, tmp_path, {"m": Answers(texts(0, 1, 2), ended)})
    cut = [b for b in server.bodies if "reached the limit of length>>>" in str(b["messages"])]
    assert len(server.bodies) == 9 and len(cut) == 3
    assert all("tide tide" in str(body["messages"]) for body in cut)


def test_a_stopped_run_goes_on_where_it_was(server, tmp_path):
    server.answer = CountingJudge()
    answers = {"m": Answers(texts(0, 1, 2))}
    price = {"claude-test": {"input": 0.0, "output": 1.0}}

    def client(max_cost):
        # Each request reserves 1,000 tokens and costs 10: the budget lets some through.
        return AnthropicClient(
            "claude-test",
            base_url=server.url,
            prices=price,
            max_cost=max_cost,
            max_tokens=1000,
            concurrency=1,
        )

    with pytest.raises(BudgetExceeded):
        run(client(0.00103), tmp_path, answers, max_concurrent=1)
    before = load_items(tmp_path)
    assert 0 < len(before) < 9
    sent = len(server.bodies)
    result = run(client(1), tmp_path, answers)
    assert len(server.bodies) == 9  # nothing twice
    assert sent == len(before)
    assert result.counts()["m"]["ok"] == 9
    run(client(1), tmp_path, answers)
    assert len(server.bodies) == 9
    assert before.items() <= load_items(tmp_path).items()


def test_more_prompts_or_strengths_ask_only_what_is_new(client, server, tmp_path):
    rows = texts(2, 0, 1)
    small = RUBRIC.limited(2, [2.0, 0.0])
    run(client, tmp_path, {"m": Answers([row[:2] for row in rows[:2]])}, small)
    assert len(server.bodies) == 4
    run(client, tmp_path, {"m": Answers(rows)})
    assert len(server.bodies) == 9


def test_other_answers_or_scales_are_asked_anew(client, server, tmp_path):
    run(client, tmp_path, {"m": Answers(texts(2, 0, 1))})
    run(client, tmp_path, {"m": Answers(texts(3, 0, 1))})
    assert len(server.bodies) == 12
    other = Rubric(**{**vars(RUBRIC), "description": "Sailors asked about the sea."})
    run(client, tmp_path, {"m": Answers(texts(3, 0, 1))}, other)
    assert len(server.bodies) == 21


def test_what_is_unparsable_or_failed_is_counted_and_never_filled_in(client, server, tmp_path):
    judge = CountingJudge()

    def answer(body):
        said = body["messages"][0]["content"]
        return message("I would rather not.") if "What is new? tide" in said else judge(body)

    server.answer = answer
    server.next(error(400, "invalid_request_error"))
    result = run(client, tmp_path, {"m": Answers(texts(2, 0, 1))}, max_concurrent=1)
    counts = result.counts()["m"]
    assert counts == {"ok": 7, "unparsable": 1, "failed": 1}
    scores = result.scores("m", "TIDE")
    assert np.isnan(scores).sum() == 2
    curve = result.curves("TIDE")["m"]
    assert curve.n == [3, 2, 2]
    assert curve.mean == [1, 2, 3]
    assert "7 rated, 1 unparsable, 1 failed" in result.table()
    assert "(n=2)" in result.table()
    # The failure is asked again, the unreadable answers are not.
    asked = len(server.bodies)
    server.answer = judge
    again = run(client, tmp_path, {"m": Answers(texts(2, 0, 1))})
    assert len(server.bodies) == asked + 1
    assert again.counts()["m"] == {"ok": 8, "unparsable": 1, "failed": 0}


def test_a_strength_without_any_rating_has_no_mean(tmp_path):
    none = [[Rating("failed"), Rating("failed"), Rating("failed")]] * 3
    result = RubricResult(RUBRIC, {"m": none})
    assert result.curves("TIDE")["m"].mean == [None] * 3
    assert "| 0 | - |" in result.table()
    json.dumps(result.to_dict(), allow_nan=False)


def test_everything_that_is_known_goes_into_the_result(client, tmp_path):
    answers = {"a": Answers(texts(4, 0, 2)), "b": Answers(texts(0, 0, 0))}
    result = run(client, tmp_path, answers)
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["strengths"] == [0, 1, 2]
    tide = found["dimensions"]["TIDE"]
    assert tide["curves"]["a"]["mean"] == [1, 3, 5]
    assert tide["against_unsteered"]["a"]["mean"] == [0, 2, 4]
    assert tide["between"][0]["first"] == "a" and tide["between"][0]["mean"] == [0, -2, -4]
    rows = result.table().splitlines()
    assert "| Strength | a | b |" in rows
    assert sum(row.startswith("| 2 | 5.00 [") for row in rows) == 2


def test_items_are_named_without_model_or_strength(client, tmp_path):
    run(client, tmp_path, {"llama": Answers(texts(2, 0, 1))})
    names = {path.stem for path in (tmp_path / "ratings").glob("*.json")}
    assert names == set(load_items(tmp_path))
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in names)
    item = load_items(tmp_path)[item_name("llama", "And the sea?", 1)]
    assert (item.strength, item.answer) == (1.0, "And the sea? tide ")
    assert Rubric.load(tmp_path / "rubric.yaml") == RUBRIC


def test_a_damaged_rating_is_named_before_anything_is_asked(client, server, tmp_path):
    answers = {"m": Answers(texts(2, 0, 1))}
    run(client, tmp_path, answers)
    path = next((tmp_path / "ratings").glob("*.json"))
    path.write_text('{"item": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path.name} is not a rating"):
        run(client, tmp_path, answers)
    assert len(server.bodies) == 9


@pytest.mark.parametrize("rows", [texts(0, 1), texts(0, 1, 2)[:2], []])
def test_answers_that_do_not_fit_the_rubric_are_refused(client, server, tmp_path, rows):
    with pytest.raises(ValueError, match="3 prompts at 3 strengths"):
        run(client, tmp_path, {"m": Answers(rows)})
    assert not server.bodies and not list(tmp_path.iterdir())


def test_unknown_names_are_refused_with_the_known_ones(client, tmp_path):
    result = run(client, tmp_path, {"m": Answers(texts(0, 1, 2))})
    with pytest.raises(ValueError, match="no 'WAVE'; there are TIDE, COHERENCE"):
        result.curves("WAVE")
