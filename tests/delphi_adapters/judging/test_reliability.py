"""Agreement of ratings with second ones and with people's: measures, files and the command."""

import asyncio
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from delphi_adapters.__main__ import COMMANDS
from delphi_adapters.clients import AnthropicClient
from delphi_adapters.commands.reliability import main
from delphi_adapters.judging.reliability import (
    AGAIN,
    agreement,
    rated_items,
    read_labels,
    sample,
    write_template,
)
from delphi_adapters.judging.rubric_runs import Answers, evaluate
from delphi_adapters.judging.rubrics import Rubric
from tests.support.messages_server import KEY, MessagesServer, message
from tests.support.rating_judge import RatingJudge
from tests.support.rubric import tides

RUBRIC = tides(tuple(f"Question {n}?" for n in range(10)), (0.0, 1.0, 2.0))
PRICES = {"claude-test": {"input": 1.0, "output": 10.0}}


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A rated folder of 30 answers."""
    texts = [
        [f"{prompt} Well, {s:g} tides." for s in RUBRIC.strengths] for prompt in RUBRIC.prompts
    ]
    texts[0][0] = "=HYPERLINK(0)"
    out = tmp_path_factory.mktemp("rated") / "out"
    with MessagesServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        server.answer = RatingJudge()
        client = AnthropicClient("claude-test", store=out / "answers", base_url=server.url)
        asyncio.run(evaluate(client, RUBRIC, {"llama": Answers(texts)}, out))
        assert len(server.bodies) == 30
    return out


@pytest.fixture
def folder(rated, server, tmp_path, monkeypatch):
    """A copy of that folder, and a judge that can be asked again."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    server.answer = RatingJudge()
    (tmp_path / "prices.json").write_text(json.dumps(PRICES), encoding="utf-8")
    return Path(shutil.copytree(rated, tmp_path / "out"))


@pytest.fixture
def judge(tmp_path):
    prices = ["--prices", str(tmp_path / "prices.json"), "--max_cost", "10"]
    return ["--judge", "claude-test", *prices]


def reliability(folder, *more):
    main([str(folder), *map(str, more)])


def found(folder):
    return json.loads((folder / "reliability.json").read_text(encoding="utf-8"))


def failure(capsys, folder, *more):
    with pytest.raises(SystemExit) as stop:
        reliability(folder, *more)
    assert stop.value.code == 1
    return capsys.readouterr().err


def labelled(path, rows, header="item,dimension,score"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_measures_of_a_table_worked_out_by_hand():
    # Distances 0, 0, 1, 2; both give 1, 2, 3 and 5 or 3 once each, or nearly so.
    one = agreement([1, 2, 3, 5], [1, 2, 4, 3])
    assert one.n == 4
    assert one.exact.value == 0.5
    assert one.within_one.value == 0.75
    # Observed (0 + 0 + 1 + 4) / 4; by chance, means 2.75 and 2.5, variances 2.1875 and 1.25:
    # 2.1875 + 1.25 + 0.25 ** 2.
    assert one.kappa.value == pytest.approx(1 - 1.25 / 3.5)
    assert one.spearman.value == pytest.approx(0.8)


def test_kappa_and_the_correlation_are_those_of_other_libraries():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(5):
        a = random.integers(1, 6, 40)
        b = np.clip(a + random.integers(-1, 2, 40), 1, 5)
        one = agreement(a, b)
        expected = metrics.cohen_kappa_score(a, b, weights="quadratic", labels=range(1, 6))
        assert one.kappa.value == pytest.approx(expected)
        assert one.spearman.value == pytest.approx(spearmanr(a, b).statistic)
        for estimate in (one.exact, one.within_one, one.kappa, one.spearman):
            assert estimate.low <= estimate.value <= estimate.high


def test_chance_agreement_has_a_kappa_of_nought_and_opposites_a_negative_one():
    random = np.random.default_rng(1)
    by_chance = agreement(random.integers(1, 6, 300), random.integers(1, 6, 300))
    assert by_chance.kappa.low < 0 < by_chance.kappa.high
    assert abs(by_chance.kappa.value) < 0.15
    assert agreement([1, 2, 4, 5], [5, 4, 2, 1]).kappa.value == pytest.approx(-1)


def test_full_agreement_says_how_little_a_small_sample_shows():
    small, large = (
        agreement([1, 3, 5] * 3, [1, 3, 5] * 3),
        agreement([1, 3, 5] * 20, [1, 3, 5] * 20),
    )
    assert small.exact.value == small.exact.high == 1
    assert small.exact.low < large.exact.low < 1
    assert (small.kappa.value, small.kappa.low) == (pytest.approx(1), None)


def test_one_and_the_same_score_throughout_has_neither_kappa_nor_correlation():
    one = agreement([5] * 8, [5] * 8)
    assert one.exact.value == 1 and one.kappa.value is None and one.spearman.value is None
    assert agreement([5] * 8, [5, 4] * 4).kappa.value == pytest.approx(0)
    assert agreement([5] * 8, [5, 4] * 4).spearman.value is None


def test_answers_to_one_prompt_are_one_observation():
    random = np.random.default_rng(2)
    a = np.repeat(random.integers(1, 6, 12), 5)
    b = np.repeat(random.integers(1, 6, 12), 5)
    alone, grouped = agreement(a, b), agreement(a, b, np.repeat(np.arange(12), 5).tolist())
    assert (alone.prompts, grouped.prompts) == (60, 12)
    assert grouped.kappa.value == pytest.approx(alone.kappa.value)
    for name in ("exact", "kappa"):
        widths = [getattr(x, name).high - getattr(x, name).low for x in (alone, grouped)]
        assert widths[1] > 1.5 * widths[0]


def test_what_is_no_pair_of_ratings_is_refused_and_none_gives_nothing():
    with pytest.raises(ValueError, match="whole numbers from 1 to 5"):
        agreement([1, 2], [0, 2])
    with pytest.raises(ValueError, match="there are 2 and 1"):
        agreement([1, 2], [1])
    nothing = agreement([], [])
    assert nothing.n == 0 and nothing.exact.value is None


def test_a_judge_that_never_wavers_agrees_with_itself(folder, judge, server, capsys):
    reliability(folder, *judge, "--sample", 12)
    assert len(server.bodies) == 12  # the stored answers do not fit the second question
    repeat = found(folder)["repeat"]["TIDE"]
    assert repeat["n"] == 12
    assert repeat["exact"]["value"] == 1 and repeat["exact"]["low"] < 1
    assert repeat["kappa"]["value"] == pytest.approx(1)
    assert "| TIDE | 12 | 1.00 [" in capsys.readouterr().out


def test_a_judge_that_wavers_is_found_out(folder, judge, server):
    def drift(score, question):
        return score % 5 + 1 if AGAIN in question else score

    server.answer = RatingJudge(drift)
    reliability(folder, *judge)
    tide = found(folder)["repeat"]["TIDE"]
    assert (tide["n"], tide["exact"]["value"]) == (30, 0)
    assert tide["kappa"]["value"] < 0.8
    assert found(folder)["repeat"]["COHERENCE"]["exact"]["value"] == 1


def test_second_ratings_are_kept_and_a_larger_sample_asks_only_for_more(folder, judge, server):
    reliability(folder, *judge, "--sample", 5)
    reliability(folder, *judge, "--sample", 5)
    assert len(server.bodies) == 5
    reliability(folder, *judge, "--sample", 8)
    assert len(server.bodies) == 8
    assert found(folder)["repeat"]["TIDE"]["n"] == 8


def test_second_ratings_that_cannot_be_read_are_counted(folder, judge, server, capsys):
    server.answer = lambda body: message("No.")
    reliability(folder, *judge, "--sample", 3)
    assert found(folder)["repeat_unanswered"] == 3
    assert found(folder)["repeat"]["TIDE"]["n"] == 0
    assert "3 second ratings" in capsys.readouterr().out


def test_a_dry_run_asks_nothing(folder, server, capsys):
    reliability(folder, "--judge", "claude-test", "--dry_run", "--sample", 7)
    assert "about 7 requests" in capsys.readouterr().out
    assert not server.bodies and not (folder / "reliability.json").exists()


def test_people_fill_in_a_file_that_tells_neither_model_nor_strength(folder, tmp_path):
    path = tmp_path / "labels.csv"
    reliability(folder, "--template", path, "--sample", 30)
    text = path.read_text(encoding="utf-8-sig")
    assert "llama" not in text
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 60 and {row["score"] for row in rows} == {""}
    assert set(rows[0]) == {"item", "dimension", "score", "prompt", "answer"}
    # A spreadsheet must not run what a model wrote.
    assert not any(row["answer"].startswith("=") for row in rows)
    # Somebody agrees with the judge on the tides, but for one answer, and rates nothing else.
    rubric, items = rated_items(folder)
    tides = [row for row in rows if row["dimension"] == "TIDE"]
    for number, row in enumerate(tides):
        score = items[row["item"]].rating.scores["TIDE"]
        row["score"] = str(score if number else score % 5 + 1)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    reliability(folder, "--labels", path)
    human = found(folder)["human"]
    assert human["TIDE"]["n"] == 30 and human["TIDE"]["prompts"] == 10
    assert human["TIDE"]["exact"]["value"] == pytest.approx(29 / 30)
    assert human["COHERENCE"]["n"] == 0
    assert rubric == RUBRIC


def test_a_file_with_somebodys_scores_is_not_written_over(folder, tmp_path, capsys):
    path = labelled(tmp_path / "labels.csv", ["a,TIDE,1"])
    assert "exists" in failure(capsys, folder, "--template", path)
    assert "a,TIDE,1" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("header", "rows", "problem"),
    [
        ("item,score", ["ITEM,3"], "no column dimension"),
        ("item;dimension;score", ["ITEM;TIDE;3"], "no column item, dimension, score"),
        ("", [], "no column item"),
        ("item,dimension,score", ["ITEM,TIDE,6"], "line 2: the score must be a whole number"),
        ("item,dimension,score", ["ITEM,TIDE,3.5"], "line 2: the score must be a whole number"),
        ("item,dimension,score", ["ITEM,TIDE,two"], "line 2: the score must be a whole number"),
        ("item,dimension,score", ["ITEM,TIDE,3", "nope,TIDE,3"], "line 3: there is no item 'nope'"),
        ("item,dimension,score", ["ITEM,WAVE,3"], "no dimension 'WAVE', only TIDE, COHERENCE"),
        ("item,dimension,score", ["ITEM,TIDE,3", "ITEM,TIDE,3"], "line 3: TIDE of item"),
        ("item,dimension,score", ["ITEM,TIDE"], "has no scores"),
        ("item,dimension,score", ["ITEM,TIDE,"], "has no scores"),
    ],
)
def test_what_is_wrong_with_labels_is_said_before_the_judge_is_paid(
    folder, judge, server, tmp_path, capsys, header, rows, problem
):
    _, items = rated_items(folder)
    rows = [row.replace("ITEM", min(items)) for row in rows]
    path = labelled(tmp_path / "labels.csv", rows, header)
    said = failure(capsys, folder, *judge, "--labels", path)
    assert problem in said and str(path) in said
    assert not server.bodies


def test_bytes_that_are_no_text_are_no_labels(folder, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(b"item,dimension,score\n\xff\xfe,TIDE,3\n")
    with pytest.raises(ValueError, match="no CSV file in UTF-8"):
        read_labels(path, *rated_items(folder))


def test_a_larger_sample_begins_with_the_smaller_one(folder):
    _, items = rated_items(folder)
    assert sample(items, 20)[:5] == sample(items, 5)
    assert sample(items, 20) != sample(items, 20, seed=1)
    assert len(sample(items, 1000)) == 30
    with pytest.raises(ValueError, match="at least one"):
        sample(items, 0)


def test_ratings_by_another_rubric_are_left_out(folder):
    Rubric(**{**vars(RUBRIC), "description": "Sailors asked."}).save(folder / "rubric.yaml")
    with pytest.raises(ValueError, match="no ratings by its rubric"):
        rated_items(folder)


def test_a_template_has_every_dimension_of_every_item(folder, tmp_path):
    rubric, items = rated_items(folder)
    write_template(tmp_path / "t.csv", rubric, sample(items, 4))
    assert len((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()) == 1 + 4 * 2


def test_wrong_use_of_the_command_is_refused(folder, tmp_path, capsys):
    assert "Say what to do" in failure(capsys, folder)
    assert "no rubric" in failure(capsys, tmp_path / "nowhere", "--template", tmp_path / "t.csv")
    assert "at least one" in failure(capsys, folder, "--template", tmp_path / "t", "--sample", 0)
    assert COMMANDS["reliability"][:2] == (main.__module__, main.__name__)
