"""An audit of two tiny models with a judge on the loopback server."""

import json

import pytest

from tests.support.audit_judge import AuditJudge
from tests.support.audit_texts import write_other_texts

PRICES = {"claude-test": {"input": 1.0, "output": 10.0}}
TRAINING = (
    "--arch dfc --hookpoints layers.1 h.2 --num_latents 64 --k 4 --pairs_per_step 128 --lr 1e-3 "
    "--max_steps 30 --ctx_len 64 --log_to_wandb False --device cpu"
)
AUDITING = (
    "--cache_ctx_len 32 --min_firings 20 --verify 2 --sample 1 --nulls 1 --max_new_tokens 6 "
    "--strengths 0 4 --null_steps 10 --stitch_pairs 2000 --stitch_held_out_pairs 200 "
    "--explain_limit 8 --max_cost 100"
)


@pytest.fixture
def options(run, server, tmp_path, monkeypatch):
    """Options of an audit whose folder is `tmp_path/audit`."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    server.answer = AuditJudge()
    (tmp_path / "prices.json").write_text(json.dumps(PRICES), encoding="utf-8")
    write_other_texts(tmp_path / "others.jsonl")
    models = [str(run.parent / "llama"), str(run.parent / "gpt2")]
    places = ["--out", str(tmp_path / "audit"), "--dataset", str(run.parent / "texts.txt")]
    judge = ["--judge", "claude-test", "--prices", str(tmp_path / "prices.json")]
    stitching = ["--stitch_dataset", str(tmp_path / "others.jsonl")]
    return [*models, *places, *judge, *stitching, *f"{TRAINING} {AUDITING}".split()]
