"""`python -m delphi_adapters explain` on the demo: its two real models and their tokenizers."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.support.messages_server import KEY, MessagesServer
from tests.support.scripted_judge import ScriptedJudge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("demo"),  # one worker makes what they share
]


def explain(run, out, *options, **environment):
    command = [sys.executable, "-m", "delphi_adapters", "explain", str(run), "--out", str(out)]
    env = {**os.environ, **environment}
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=env, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "summary.json").read_text(encoding="utf-8")), pq.read_table(
        out / "features.parquet"
    )


def test_every_alive_exclusive_latent_of_the_demo_is_explained_flagged_and_scored(demo, tmp_path):
    with MessagesServer() as server:
        server.answer = ScriptedJudge()
        options = ["--judge", "claude-haiku-4-5", "--max_cost", "50"]
        environment = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": KEY}
        summary, table = explain(demo[0] / "demo", tmp_path / "out", *options, **environment)
        assert len(server.bodies) == len(server.sent()) > 1500
        again, table_again = explain(demo[0] / "demo", tmp_path / "out", *options, **environment)
        assert len(server.bodies) == len(server.sent())
    assert table_again.equals(table) and again["flags"] == summary["flags"]
    rows = table.to_pylist()
    assert len(rows) == 4096
    asked = [row for row in rows if row["source"] is not None and not row["dead"]]
    assert len(asked) > 380
    assert {row["flag_status"] for row in asked} == {"ok"}
    assert all(row["explanation"] and row["filter_verdict"] for row in asked)
    scored = [row for row in asked if row["detection_score"] is not None]
    assert len(scored) > 0.85 * len(asked)
    # The judge is right about all that it was shown, unless a text is in the corpus twice.
    assert min(row["detection_score"] for row in scored) >= 0.8
    assert sum(row["detection_score"] == 1 for row in scored) > 0.98 * len(scored)
    assert all(
        "examples, fewer than the 10 needed" in row["not_scorable"]
        for row in asked
        if row["detection_score"] is None
    )


def test_a_local_model_judges_whatever_quality_that_gives(demo, tmp_path):
    folder, _ = demo
    config = json.loads((folder / "demo" / "config.json").read_text(encoding="utf-8"))
    options = ["--judge", config["model"], "--latents", "0", "300", "--no_filter"]
    options += ["--max_tokens", "60", "--windows", "300"]
    summary, table = explain(folder / "demo", tmp_path / "out", *options)
    asked = [row for row in table.take([0, 300]).to_pylist() if not row["dead"]]
    assert asked and sum(summary["flags"].values()) == len(asked)
    for row in asked:
        assert row["flag_status"] in ("ok", "unparsable")
        assert row["detection_score"] is not None or row["not_scorable"]
        flag = json.loads(
            (tmp_path / "out" / "flags" / f"{row['name']}.json").read_text(encoding="utf-8")
        )
        assert flag["raw"] and all(isinstance(text, str) and text for text in flag["raw"])
