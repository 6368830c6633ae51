"""`python -m delphi_adapters explain` on a trained run, by delphi's pipeline and the real SDK."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import torch

from delphi_adapters.clients import RetryPolicy
from delphi_adapters.commands.explain import main
from delphi_adapters.delphi.crosscoder_cache import CacheOptions, CrosscoderLatentCache
from delphi_adapters.delphi.latent_statistics import LatentStatistics
from delphi_adapters.delphi.run_text import RunText
from delphi_adapters.explaining import flagging, interpretability
from delphi_adapters.explaining.autointerp import RAW, Autointerp, JudgingConfig
from delphi_adapters.explaining.features import COLUMNS, features
from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.evaluation.filter import FilterRecord
from tests.support.messages_server import CUT, KEY, MessagesServer, Reply, error, message
from tests.support.scripted_judge import ScriptedJudge

PRICES = {"claude-test": {"input": 1.0, "output": 10.0}}
SHORT = ["--ctx_len", "32", "--example_ctx_len", "16", "--min_firings", "20"]
MODULE = "model.layers.1"

pytestmark = pytest.mark.xdist_group("explain")


@pytest.fixture
def options(run, server, tmp_path, monkeypatch):
    """Options of a run of the judge on the loopback server; results go to `tmp_path/out`."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    server.answer = ScriptedJudge()
    (tmp_path / "prices.json").write_text(json.dumps(PRICES), encoding="utf-8")
    places = ["--out", str(tmp_path / "out"), "--prices", str(tmp_path / "prices.json")]
    judge = ["--judge", "claude-test", "--max_cost", "100"]
    return ["explain", str(run), *judge, *places, *SHORT, "--latents", "all"]


class Finished(NamedTuple):
    """A run whose every latent has been asked about."""

    out: Path
    said: str
    result: dict
    """What `--json` wrote."""
    requests: int


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("explained")
    (folder / "prices.json").write_text(json.dumps(PRICES), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, MessagesServer() as server:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        patch.setenv("ANTHROPIC_BASE_URL", server.url)
        patch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
        patch.setenv("HOME", str(folder / "home"))
        server.answer = ScriptedJudge()
        places = ["--out", str(folder / "out"), "--prices", str(folder / "prices.json")]
        judge = ["--judge", "claude-test", "--max_cost", "100"]
        places += ["--json", str(folder / "result.json")]
        with redirect_stdout(io.StringIO()) as said:
            main([str(run), *judge, *places, *SHORT, "--latents", "all"])
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Finished(folder / "out", said.getvalue(), result, len(server.bodies))


@pytest.fixture
def cached(options, finished, tmp_path):
    """`options` of a run whose latents are cached already."""
    shutil.copytree(finished.out / "latents", tmp_path / "out" / "latents")
    return options


@pytest.fixture
def explained(options, finished, tmp_path):
    """`options` of a run that is finished."""
    shutil.copytree(finished.out, tmp_path / "out")
    return options


def explain(options, *more):
    main([*options[1:], *more])


def table(folder):
    return pq.read_table(folder / "features.parquet")


def contents(folder):
    """Every file that the judge's answers made, by name."""
    names = ("explanations", "flags", "scores", "interpretability", "categories")
    files = [f for name in names for f in (folder / name).rglob("*") if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_every_alive_latent_is_explained_flagged_and_scored(finished, run):
    out, said, result, requests = finished
    rows = table(out).to_pylist()
    crosscoder = Crosscoder.load_one(run)
    statistics = LatentStatistics.load(out / "latents" / MODULE / "statistics/latents.safetensors")
    assert [row["latent"] for row in rows] == list(range(crosscoder.num_latents))
    alive = [row for row in rows if not row["dead"]]
    assert len(alive) == int((statistics.firings > 0).sum()) > 30
    assert {row["flag_status"] for row in alive} == {"ok"}
    assert all(row["explanation"].startswith("Texts about") for row in alive)
    assert {row["harmful"] for row in alive} == {True, False}
    assert all((row["category"] is not None) == row["harmful"] for row in alive)
    # The judge knows what it was shown, so examples reach it as they are and scores are right.
    scored = [row for row in alive if row["detection_score"] is not None]
    assert len(scored) > 20
    assert {row["detection_score"] for row in scored} == {1.0}
    assert all(row["interpretable"] is True and row["unanswered"] == 0 for row in scored)
    assert all(row["not_scorable"] for row in alive if row["detection_score"] is None)
    for row in rows:
        assert row["s_max"] == pytest.approx(statistics.max_activation[row["latent"]])
        assert row["relative_decoder_norm"] == pytest.approx(
            crosscoder.relative_decoder_norm()[row["latent"]].item()
        )
        assert (row["filter_verdict"] is not None) == (row["source"] is not None)
    assert any(row["filter_verdict"] for row in rows)
    assert result == json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert result["explained"] == len(alive)
    assert result["harmful"] == sum(row["harmful"] for row in alive)
    sorted_latents = sum(c["count"] for some in result["categories"].values() for c in some)
    assert sorted_latents == result["harmful"]
    assert result["estimate"]["requests"] == pytest.approx(requests, rel=0.3)
    assert result["ledger"]["outcomes"] == {"end_turn": requests}
    assert f"{len(alive):,} alive latents" in said


def test_a_second_start_asks_nothing_and_changes_nothing(explained, server, tmp_path):
    before = contents(tmp_path / "out")
    first = table(tmp_path / "out")
    explain(explained)
    assert before and not server.bodies
    assert contents(tmp_path / "out") == before
    assert table(tmp_path / "out").equals(first)


def test_the_parquet_file_says_what_its_columns_mean(finished):
    schema = table(finished.out).schema
    assert schema.names == list(COLUMNS)
    assert all(field.metadata[b"meaning"] for field in schema)


def test_exclusivity_scores_have_columns_of_their_own(explained, run, tmp_path):
    crosscoder = Crosscoder.load_one(run)
    cache = CrosscoderLatentCache(
        crosscoder,
        RunText.of_run(run, torch.device("cpu")),
        tmp_path / "out" / RAW,
        options=CacheOptions(ctx_len=32),
    )
    autointerp = Autointerp(
        cache, tmp_path / "out", JudgingConfig(example_ctx_len=16), run=run, judge="claude-test"
    )
    rows = features(autointerp, crosscoder, None, {3: {"exclusivity": 4.5, "sampled": "flagged"}})
    assert rows.schema.names == list(COLUMNS)
    assert rows["exclusivity"].to_pylist()[3:6] == [4.5, None, None]
    assert rows["sampled"].to_pylist()[3:6] == ["flagged", None, None]
    assert rows["explanation"].equals(table(tmp_path / "out")["explanation"])


def test_delphis_own_log_reads_the_results(explained, tmp_path, capsys):
    pytest.importorskip("kaleido")
    from delphi.log.result_analysis import log_results

    out = tmp_path / "out"
    capsys.readouterr()
    log_results(out / "scores", out / "visualize", [MODULE], ["detection"])
    printed = capsys.readouterr().out
    assert "Class-Balanced Accuracy: 1.000" in printed
    assert "Frequency-Weighted F1 Score: 1.000" in printed
    assert "min examples 1" in printed
    assert (out / "visualize" / "detection_accuracy.pdf").stat().st_size > 1000


@pytest.mark.slow
def test_whatever_the_server_does_ends_in_a_recorded_outcome(cached, server, tmp_path, monkeypatch):
    monkeypatch.setattr(RetryPolicy, "delay", lambda *_: 0.0)
    judge, chance = ScriptedJudge(), random.Random(1)

    def answer(body):
        kind = chance.random()
        if kind < 0.1:
            return message("")
        if kind < 0.2:
            return message("I cannot help with that.", stop_reason="refusal")
        if kind < 0.3:
            return message(judge(body)["content"][1]["text"][:20], stop_reason="max_tokens")
        if kind < 0.4:
            return message("[1, maybe]")
        return judge(body)

    server.answer = answer
    troubles = [error(429, "rate_limit_error", retry_after="0"), error(529, "overloaded_error")]
    troubles += [CUT, Reply(b"{not json"), error(500), error(400, "invalid_request_error")]
    server.next(*(one for _ in range(40) for one in (*troubles, None, None)))
    explain(cached)
    rows = [row for row in table(tmp_path / "out").to_pylist() if not row["dead"]]
    statuses = {row["flag_status"] for row in rows}
    assert statuses <= {"ok", "unparsable", "failed"} and len(statuses) > 1
    decisions = interpretability.load(tmp_path / "out")
    for row in rows:
        decision = decisions[row["name"]]
        assert (decision.score is None) == (decision.not_scorable is not None)
    unanswered = [row for row in rows if row["unanswered"] and row["detection_score"] is not None]
    assert unanswered
    for row in unanswered:
        assert row["detection_score"] <= 1 - row["unanswered"] / 20

    server.answer, server.script = judge, {}
    explain(cached)
    again = [row for row in table(tmp_path / "out").to_pylist() if not row["dead"]]
    assert "failed" not in {row["flag_status"] for row in again}


@pytest.mark.slow
def test_a_budget_stops_the_run_and_more_of_it_goes_on(cached, server, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        explain(cached, "--max_cost", "0.05")
    assert exit.value.code == 1
    assert "used up" in capsys.readouterr().err
    part = table(tmp_path / "out").to_pylist()
    asked = {text for text, _ in server.sent().items()}
    assert 0 < sum(row["explanation"] is not None for row in part) < len(part)
    explain(cached)
    rows = table(tmp_path / "out").to_pylist()
    assert all(row["flag_status"] == (None if row["dead"] else "ok") for row in rows)
    assert max(server.sent().values()) == 1 and asked < set(server.sent())


def start(options, out, server, **environment):
    """The command in a process of its own."""
    env = {**os.environ, "ANTHROPIC_BASE_URL": server.url, "OMP_NUM_THREADS": "1", **environment}
    options = [str(out) if o.endswith("/out") else o for o in options]
    command = [sys.executable, "-m", "delphi_adapters", *options, "--no_filter"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.timeout(300)
def test_killed_three_times_it_ends_with_the_same_files(options, server, tmp_path, how):
    server.hold = lambda: time.sleep(0.02)
    whole = start(options, tmp_path / "whole", server)
    assert whole.communicate(timeout=120)[0] and whole.returncode == 0
    total = len(server.bodies)
    server.bodies.clear()
    chance = random.Random(3)
    for target in sorted(chance.sample(range(total // 10, total * 9 // 10), 3)):
        process = start(options, tmp_path / "out", server)
        while len(server.bodies) < target and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(how)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == (1 if how == signal.SIGTERM else -how), printed
    last = start(options, tmp_path / "out", server)
    printed, _ = last.communicate(timeout=120)
    assert last.returncode == 0, printed
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    repeated = len(server.bodies) - len(server.sent())
    # Only a kill that leaves no time loses answers, at most those in flight.
    assert repeated == 0 if how == signal.SIGTERM else repeated <= 3 * 8


@pytest.mark.slow
def test_batches_give_the_same_results_at_half_the_price(explained, server, tmp_path, monkeypatch):
    from delphi_adapters.clients import BatchAnthropicClient

    quick = replace(BatchAnthropicClient.batching, idle=0.3, poll_first=0.05)
    monkeypatch.setattr(BatchAnthropicClient, "batching", quick)
    alone = table(tmp_path / "out")
    cost = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["ledger"][
        "spent"
    ]
    out = tmp_path / "batched"
    explain([str(out) if o.endswith("/out") else o for o in explained], "--batch")
    assert table(out).equals(alone)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["ledger"]["spent"] == pytest.approx(cost / 2)
    assert 5 <= len(server.batches) <= 20


def test_a_dry_run_says_what_it_would_cost_and_asks_nothing(options, server, tmp_path, capsys):
    explain([o for o in options if o not in ("--max_cost", "100")], "--dry_run")
    assert not server.bodies
    printed = capsys.readouterr().out
    assert "requests" in printed and "$" in printed
    assert not (tmp_path / "out" / "flags").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--latents", "64"], "latents 0..63"),
        (["--latents", "some"], "numbers, 'listed', 'exclusive', 'kept' or 'all'"),
        (["--source", "2"], "sources 0..1"),
        (["--example_ctx_len", "5"], "does not divide"),
        (["--n_examples_shown", "3"], "does not divide"),
        (["--ctx_len", "16000000"], "no whole row"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_asked(options, server, capsys, more, message):
    with pytest.raises(SystemExit) as exit:
        explain(options, *more)
    assert exit.value.code == 1
    assert message in capsys.readouterr().err
    assert not server.bodies


KEPT = ["--latents", "kept", "--predictability", "9", "--shadow", "99", "--min_firings", "4000"]


def test_latents_that_the_filter_keeps_are_explained(cached, tmp_path):
    explain(cached, *KEPT)
    rows = table(tmp_path / "out").to_pylist()
    kept = {row["latent"] for row in rows if row["filter_verdict"] == "kept"}
    assert kept and any(row["filter_verdict"] not in (None, "kept") for row in rows)
    alive = {row["latent"] for row in rows if not row["dead"]}
    assert {row["latent"] for row in rows if row["explanation"]} == kept & alive
    settings = json.loads((tmp_path / "out" / "filter.json").read_text(encoding="utf-8"))
    assert settings["settings"]["filter"]["shadow"] == 99


def test_latents_of_listed_differences_are_explained_beside_exclusive_ones(cached, tmp_path):
    explain(cached, "--latents", "listed")
    rows = table(tmp_path / "out").to_pylist()
    filtered = FilterRecord.read(tmp_path / "out" / "filter.json", "")
    listed = {row["latent"] for row in filtered.findings}
    assert filtered.differences
    alive = {row["latent"] for row in rows if not row["dead"]}
    exclusive = {row["latent"] for row in rows if row["source"] is not None}
    explained = {row["latent"] for row in rows if row["explanation"]}
    assert explained == (exclusive | listed - {None}) & alive


@pytest.mark.parametrize("asked", [KEPT, ["--latents", "listed"]])
def test_what_the_filter_says_is_not_known_without_it(options, server, tmp_path, capsys, asked):
    with pytest.raises(SystemExit) as exit:
        explain(options, *asked, "--no_filter")
    assert exit.value.code == 1
    assert f"--latents {asked[1]}" in (said := capsys.readouterr().err) and "--no_filter" in said
    assert not server.bodies and not (tmp_path / "out").exists()


def test_a_claude_model_needs_a_budget_and_a_key(options, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        explain([o for o in options if o not in ("--max_cost", "100")])
    assert "--max_cost" in capsys.readouterr().err
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(SystemExit):
        explain(options)
    assert "ANTHROPIC_API_KEY" in capsys.readouterr().err


def test_a_folder_of_other_questions_is_refused(explained, tmp_path, capsys):
    before = contents(tmp_path / "out")
    with pytest.raises(SystemExit):
        explain(explained, "--latents", "3", "--example_ctx_len", "8")
    assert "example_ctx_len" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_a_run_that_is_none_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path / "nothing"), "--judge", "claude-test", "--dry_run"])
    assert exit.value.code == 1 and "nothing" in capsys.readouterr().err


def test_flags_are_kept_by_latent(cached, tmp_path):
    explain(cached, "--latents", "3", "5", "7")
    flags = flagging.load_flags(tmp_path / "out")
    assert set(flags) <= {f"{MODULE}_latent{i}" for i in (3, 5, 7)}
    for name, flag in flags.items():
        assert len(flag.raw) == flag.attempts == 1
        stored = Path(tmp_path / "out" / "explanations" / f"{name}.txt").read_text(encoding="utf-8")
        assert json.loads(stored) == flagging.load_explanation(tmp_path / "out", name)
