"""`python -m delphi_adapters audit`: from two tiny models to a report, by the real SDK."""

import json
import re

import pytest
import yaml

from delphi_adapters.commands.audit import main
from delphi_adapters.judging.rubrics import Rubric
from tests.support.audit_results import STAGES, differences, records, results
from tests.support.messages_server import error

pytestmark = pytest.mark.xdist_group("audits")  # one worker makes what they share


@pytest.fixture
def fresh(tmp_path):
    """Where `options` has an audit that has not begun."""
    return tmp_path / "audit"


def test_an_audit_ends_in_a_report_and_a_second_one_does_nothing(options, audit, server, capsys):
    found, done = results(audit), records(audit)
    assert list(done) == list(STAGES)
    assert all(record["finished"] for record in done.values())
    rows = {row["latent"]: row for row in found["table"]}
    directions = done["exclusivity"]["result"]["directions"]
    verified = [d for d in directions if d["why"] not in ("shared", "random")]
    assert len(verified) > 1
    assert {d["why"] for d in directions} >= {"shared", "random"}
    for direction in verified:
        row = rows[direction["latent"]]
        assert row["sampled"] == direction["why"]
        assert row["source"] == direction["source"]
        assert row["exclusivity_status"] == "scored"
        assert 1 <= row["exclusivity"] <= 5
    assert all(row["exclusivity"] is None for row in rows.values() if row["sampled"] is None)
    assert {row["harmful"] for row in rows.values()} >= {True, None}
    shown = (audit / "report.html").read_text(encoding="utf-8")
    assert verified and all(rows[one["latent"]]["explanation"] in shown for one in verified)
    assert (audit / "report.md").read_text(encoding="utf-8").startswith("# llama and gpt2")

    asked = len(server.bodies)
    written = {file: file.stat().st_mtime_ns for file in audit.rglob("*") if file.is_file()}
    capsys.readouterr()
    main(options)
    assert "Nothing to do" in capsys.readouterr().out
    assert len(server.bodies) == asked
    assert {f: f.stat().st_mtime_ns for f in audit.rglob("*") if f.is_file()} == written


def test_shared_latents_that_are_compared_pass_the_tests_that_others_pass(audit):
    found, done = results(audit), records(audit)
    rows = {row["latent"]: row for row in found["table"]}
    explained = done["explain"]["result"]
    directions = done["exclusivity"]["result"]["directions"]
    shared = [one["latent"] for one in directions if one["why"] == "shared"]
    assert shared and set(shared) <= {*explained["compared"], *explained["latents"]}
    assert all(rows[latent]["interpretable"] for latent in shared)
    assert all(rows[latent]["source"] is None for latent in explained["compared"])
    assert any(rows[latent]["harmful"] for latent in explained["compared"])
    report = (audit / "report.md").read_text(encoding="utf-8")
    assert not any(f"## Latent {latent}\n" in report for latent in explained["compared"])


@pytest.mark.slow
def test_stage_by_stage_comes_to_the_same_as_all_at_once(options, finished, tmp_path):
    whole = results(finished)
    pieces = tmp_path / "pieces"
    for stage in STAGES:
        main([*options, "--out", str(pieces), "--until", stage])
        assert list(records(pieces)) == list(STAGES[: STAGES.index(stage) + 1])
    assert differences(results(pieces), whole) == []


def test_only_what_is_changed_is_done_again(options, audit, server, capsys):
    before = records(audit)
    main([*options, "--verify", "1"])
    after = records(audit)
    again = {stage for stage in STAGES if after[stage] != before[stage]}
    assert again == {"exclusivity", "rubrics", "report"}
    assert after["exclusivity"]["result"]["verified"] == 1
    assert any((audit / "superseded").iterdir())
    asked = len(server.bodies)
    main(options)  # what was superseded is taken back
    assert {s for s in STAGES if records(audit)[s]["inputs"] != before[s]["inputs"]} == set()
    assert len(server.bodies) == asked


def test_outputs_that_were_deleted_are_made_again(options, audit, server):
    whole, asked = results(audit), len(server.bodies)
    for file in (audit / "explain" / "flags").iterdir():
        file.unlink()
    (audit / "filter" / "filter.json").unlink()
    (audit / "report.html").unlink()
    main(options)
    assert differences(results(audit), whole) == []
    assert len(server.bodies) == asked  # every answer was kept


@pytest.mark.slow
def test_latents_without_an_answer_are_asked_for_again(options, unasked, server, capsys):
    refused = error(400, "invalid_request_error", "not today")
    server.next(*[None, None, refused] * 30)
    main(options)
    assert "the same command asks again" in capsys.readouterr().err
    assert not all(record["finished"] for record in records(unasked).values())
    server.script.clear()
    main(options)
    assert all(record["finished"] for record in records(unasked).values())
    statuses = {row["flag_status"] for row in results(unasked)["table"]}
    assert statuses <= {"ok", None}


@pytest.mark.slow
def test_a_budget_stops_an_audit_and_a_larger_one_goes_on(options, unasked, server, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*options, "--max_cost", "0.022"])
    assert stopped.value.code == 1
    assert "stopped: " in capsys.readouterr().err
    assert not (unasked / "report.html").exists()
    paid = len(server.bodies)
    assert paid
    main(options)
    assert (unasked / "report.html").exists()
    asked = [json.dumps(body, sort_keys=True) for body in server.bodies]
    assert len(asked) == len(set(asked))


def test_a_dry_run_writes_nothing_and_says_what_is_left(options, fresh, server, tmp_path):
    main([*options, "--dry_run", "--json", str(tmp_path / "left.json")])
    assert not fresh.exists() or not list(records(fresh))
    left = json.loads((tmp_path / "left.json").read_text(encoding="utf-8"))
    assert list(left["stages"]) == list(STAGES)
    assert {row["state"] for row in left["stages"].values()} == {"to do"}
    assert left["stages"]["harvest"]["pairs"] > 1000
    assert left["stages"]["explain"]["requests"] == 12  # 8 latents, and 4 shared ones beside them
    assert left["seconds"] > 0
    assert left["likely_cost"] > 0
    assert not server.bodies


def test_a_dry_run_says_what_is_done(options, unasked, server, capsys):
    main([*options, "--dry_run"])
    out = capsys.readouterr().out
    assert re.search(r"filter +done", out)
    assert re.search(r"explain +to do", out)
    assert not server.bodies


@pytest.mark.slow
def test_a_trained_run_can_be_audited(options, fresh, run, server):
    own = options[options.index("--judge") :]
    cut = own.index("--arch")
    main(["--run", str(run), "--out", str(fresh), *own[:cut], *own[own.index("--cache_ctx_len") :]])
    assert (fresh / "report.html").exists()
    assert records(fresh)["train"]["result"]["summary"]["arch"] == "dfc"
    assert not (fresh / "train" / "run").exists()


def test_the_most_exclusive_latents_are_rated_by_a_rubric(options, audit, server, tmp_path):
    rubric = Rubric.load("harmless_refusal")
    short = rubric.to_dict() | {"name": "short", "strengths": [0, 2]}
    short["prompts"] = short["prompts"][:3]
    short["generation"] = short["generation"] | {"max_new_tokens": 4}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    own = ["--rubrics", str(tmp_path / "short.yaml"), "--rubric_features", "1"]
    main([*options, *own])
    (rated,) = records(audit)["rubrics"]["result"]["rated"]
    result = json.loads(
        (audit / "rubrics" / "short" / rated["latent"] / "result.json").read_text(encoding="utf-8")
    )
    assert result["models"][1].endswith(", stitched")
    assert len(result["counts"]) == len(result["models"])
    assert all(n == {"ok": 6, "unparsable": 0, "failed": 0} for n in result["counts"].values())
    assert "short: harmless refusal" in json.dumps(results(audit)["details-0"])
    asked = len(server.bodies)
    assert asked
    main([*options, *own])
    assert len(server.bodies) == asked


def test_other_runs_say_which_differences_come_back(options, audit, run):
    main([*options, "--stability_runs", str(run)])
    stability = json.loads((audit / "report" / "stability.json").read_text(encoding="utf-8"))
    assert len(stability["runs"]) == 2
    assert "## Stability" in (audit / "report.md").read_text(encoding="utf-8")


def test_a_hubs_token_is_in_no_file(options, fresh):
    main([*options, "--until", "train", "--hf_token", "hf_secret0"])
    files = [file for file in fresh.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if b"hf_secret0" in file.read_bytes()]


def test_a_mistake_is_explained_and_nothing_is_written(options, audit, capsys):
    main([*options, "--until", "cache"])
    with pytest.raises(SystemExit) as stopped:
        main([*options, "--latents", "9999"])
    assert stopped.value.code == 1
    assert "There are latents 0..63, not 9999" in capsys.readouterr().err
