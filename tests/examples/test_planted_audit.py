"""Audits of real models: what was planted comes first, and a model does not differ from itself."""

import importlib
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

ROOT = Path(__file__).parents[2]
audit_judge = importlib.import_module("tests.support.audit_judge")
demo_script = importlib.import_module("demo")
messages_server = importlib.import_module("tests.support.messages_server")
planted_audit = importlib.import_module("planted_audit")

from delphi_adapters.commands.audit import main, read_options  # noqa: E402
from delphi_adapters.judging import exclusivity  # noqa: E402

PRICES = {"claude-test": {"input": 1.0, "output": 10.0}}
SHORT = (
    "--explain_limit 3 --verify 3 --sample 0 --nulls 1 --strengths 0 10 --max_new_tokens 12 "
    "--null_steps 0 --power_plants 0 --stitch_pairs 7000 --stitch_held_out_pairs 1000 "
    "--graft_texts 0 --patch_entries 0 --equivalence_latents 0 --max_cost 100"
)


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """Options of a scripted judge on the loopback."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", messages_server.KEY)
    (tmp_path / "prices.json").write_text(json.dumps(PRICES), encoding="utf-8")
    with messages_server.MessagesServer() as server:
        server.answer = audit_judge.AuditJudge()
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        yield ["--judge", "claude-test", "--prices", str(tmp_path / "prices.json")]


def test_the_demos_audit_has_options_that_there_are():
    argv = [f"--{name}" for name in demo_script.AUDIT_OPTIONS]
    values = demo_script.AUDIT_OPTIONS.values()
    tokens = [
        str(token)
        for name, value in zip(argv, values, strict=True)
        for token in (name, *(value if isinstance(value, list) else [value]))
    ]
    config = read_options(["--run", "runs/demo", *tokens]).config
    assert not config.train
    assert not config.judged
    assert config.stages["exclusivity"].strengths == demo_script.AUDIT_OPTIONS["strengths"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.xdist_group("in the demo's store")
@pytest.mark.timeout(3600)
def test_what_was_planted_is_the_most_exclusive(demo, judge, tmp_path, monkeypatch):
    folder, _ = demo
    options = ["--data", str(folder / "demo-data"), "--out", str(tmp_path / "planted")]
    monkeypatch.setattr(sys, "argv", ["planted_audit.py", *options, *judge, *SHORT.split()])
    monkeypatch.chdir(folder.parent)
    planted_audit.main()

    audit = tmp_path / "planted" / "audit"
    direction = torch.tensor(
        json.loads((tmp_path / "planted" / "planted.json").read_text(encoding="utf-8"))
    )
    cosines = planted_audit.likeness_to_planted(audit / "train" / "run", direction)
    rows = pq.read_table(audit / "features.parquet").to_pylist()
    verified = [row for row in rows if row["sampled"] is not None]
    assert 2 <= len(verified) <= 3  # what else is listed is a matter of rounding
    verified.sort(key=lambda row: (-(row["exclusivity"] or 0.0), row["difference"] or len(rows)))
    first, *others = verified
    assert cosines[first["latent"]] > 0.95
    assert first["exclusivity"] == 5.0
    assert first["source"] == 0
    assert max(cosines[row["latent"]] for row in others) < 0.5
    assert first["difference"] == 1
    assert first["difference_score"] > 2 * max(row["difference_score"] or 0.0 for row in others)
    assert first["filter_score"] > 0.9

    # Steered with it, the two models add no words that the other adds as well.
    results = exclusivity.load(audit / "exclusivity")
    (own,) = [one for one in results.values() if one.name == first["name"]]
    assert own.blinded_score == 5.0
    assert {one.kind for one in results.values()} == {"feature", "shared", "random"}
    assert "what differs" in (audit / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_model_audited_against_itself_keeps_next_to_nothing(demo_models, tmp_path):
    model, texts = str(demo_models / "smollm2-135m-instruct"), tmp_path / "texts.jsonl"
    demo_script.write_demo_texts(texts)
    training = "--num_latents 4096 --k 32 --pairs_per_step 512 --max_steps 150 --epochs 4"
    training += " --arch dfc --lr 2e-3 --max_examples 100 --ctx_len 256 --log_to_wandb False"
    out = tmp_path / "itself"
    places = ["--dataset", str(texts), "--out", str(out), "--until", "filter"]
    main([model, model, *places, *training.split()])
    record = json.loads((out / "filter" / "stage.json").read_text(encoding="utf-8"))
    verdicts = record["result"]["verdicts"]
    called = sum(sum(counts.values()) for counts in verdicts)
    assert called >= 400
    assert sum(counts["kept"] for counts in verdicts) <= called / 400
