"""An audit of two tiny models with a judge on the loopback server."""

import json
import shutil

import pytest

from delphi_adapters.commands.audit import main
from tests.support.audit_judge import AuditJudge
from tests.support.audit_texts import write_other_texts
from tests.support.messages_server import KEY, MessagesServer

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


@pytest.fixture(scope="session")
def argv(run, tmp_path_factory):
    """Options of an audit, without the folder that it goes to."""
    folder = tmp_path_factory.mktemp("audits")
    (folder / "prices.json").write_text(json.dumps(PRICES), encoding="utf-8")
    write_other_texts(folder / "others.jsonl")
    models = [str(run.parent / "llama"), str(run.parent / "gpt2")]
    places = ["--dataset", str(run.parent / "texts.txt")]
    judge = ["--judge", "claude-test", "--prices", str(folder / "prices.json")]
    stitching = ["--stitch_dataset", str(folder / "others.jsonl")]
    return [*models, *places, *judge, *stitching, *f"{TRAINING} {AUDITING}".split()]


@pytest.fixture
def options(argv, server, tmp_path, monkeypatch):
    """Options of an audit whose folder is `tmp_path/audit`."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    server.answer = AuditJudge()
    return [*argv, "--out", str(tmp_path / "audit")]


@pytest.fixture(scope="session")
def finished(argv, tmp_path_factory):
    """The folder of an audit that ended, to look at and to copy."""
    folder = tmp_path_factory.mktemp("finished")
    with MessagesServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        patch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("ANTHROPIC_BASE_URL", server.url)
        server.answer = AuditJudge()
        main([*argv, "--out", str(folder / "audit")])
    return folder / "audit"


@pytest.fixture
def audit(finished, tmp_path):
    """A copy of the finished audit where `options` has it, to go on with."""
    shutil.copytree(finished, tmp_path / "audit")
    return tmp_path / "audit"


@pytest.fixture
def unasked(audit):
    """The same as it was before the judge was asked."""
    for stage in ("explain", "score", "exclusivity", "rubrics", "report", "answers"):
        shutil.rmtree(audit / stage)
    for file in ("audit.json", "report.html", "report.md", "features.parquet"):
        (audit / file).unlink()
    return audit
