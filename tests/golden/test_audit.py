"""What an audit of tiny models leaves in its folder, and what tells that its stages are done."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.golden.compare import contents, file_names
from tests.golden.tiny import TRAINING, call, in_words, normalised
from tests.support.audit_judge import AuditJudge
from tests.support.audit_texts import write_other_texts
from tests.support.messages_server import KEY, MessagesServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("golden audits"),  # one worker makes what they share
]

STAGES = (
    *("harvest", "train", "cache", "filter", "null", "power", "describe", "explain", "score"),
    *("graft", "baselines", "patch", "stitch", "equivalence", "exclusivity", "rubrics", "report"),
)
AUDITING = (
    "--cache_ctx_len 32 --min_firings 20 --verify 1 --sample 1 --nulls 1 --max_new_tokens 2 "
    "--strengths 0 4 --null_steps 4 --stitch_pairs 500 --stitch_held_out_pairs 150 "
    "--explain_limit 3 --filter_pairs 3000"
)
RUBRIC = {
    "name": "rivers",
    "description": "People asked about rivers.",
    "strengths": [0, 2],
    "generation": {"max_new_tokens": 2},
    "dimensions": [
        {"label": label, "question": "How much?", "levels": {n: f"{n}." for n in range(1, 6)}}
        for label in ("RIVERS", "COHERENCE")
    ],
    "examples": [
        {
            "prompt": "Hm?",
            "response": "The Rhine.",
            "scores": {"RIVERS": 5, "COHERENCE": 5},
            "reason": "It is one.",
        }
    ],
    "prompts": ["The quick brown", "In 1989 the"],
}


@pytest.fixture(scope="module")
def judge(place, tmp_path_factory):
    """Options that name a judge on the loopback server."""
    prices = place / "prices.json"
    prices.write_text('{"claude-test": {"input": 1.0, "output": 10.0}}', encoding="utf-8")
    (place / "rivers.yaml").write_text(yaml.safe_dump(RUBRIC), encoding="utf-8")
    write_other_texts(place / "others.jsonl")
    with pytest.MonkeyPatch.context() as patch, MessagesServer() as server:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        patch.setenv("ANTHROPIC_BASE_URL", server.url)
        patch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        server.answer = AuditJudge()
        yield ["--judge", "claude-test", "--prices", prices, "--max_cost", "100"]


@pytest.fixture(scope="module")
def command(place, judge) -> list:
    """The command line of an audit."""
    texts = ["--dataset", place / "texts.txt", "--stitch_dataset", place / "others.jsonl"]
    rubric = ["--rubrics", place / "rivers.yaml", "--rubric_features", "1"]
    options = f"{TRAINING} {AUDITING}".split()
    return ["audit", place / "base", place / "tuned", *texts, *judge, *rubric, *options]


@pytest.fixture(scope="module")
def audit(place, command) -> Path:
    """The folder of a finished audit."""
    call("delphi_adapters", *command, "--out", place / "audit")
    return place / "audit"


def record(audit: Path, stage: str) -> dict:
    return json.loads((audit / stage / "stage.json").read_text(encoding="utf-8"))


def test_what_a_stage_is_made_from(audit, place, golden):
    """The same inputs mean that a finished stage is not done, and paid for, again."""
    inputs = {stage: normalised(record(audit, stage)["inputs"], place) for stage in STAGES}
    golden.json("audit/inputs", inputs)


def test_a_stages_record(audit, golden):
    assert all(record(audit, stage)["finished"] for stage in STAGES)
    golden.json("audit/record", list(record(audit, "filter")))


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_came_to(stage, audit, place, golden):
    found = normalised(record(audit, stage)["result"], place)
    # Equal requests at the same time are one, which later ones find in the store.
    found.get("ledger", {}).get("outcomes", {}).pop("stored", None)
    golden.json(f"audit/result_{stage}", found, shape=("/.*",))


def test_an_audits_files(audit, golden):
    golden.json("audit/files", {stage: names(audit / stage) for stage in STAGES})
    above = sorted(one.name for one in audit.iterdir() if one.name not in STAGES)
    golden.json("audit/folder", above)


def names(folder: Path) -> list[str]:
    """Files with "#" for latents' numbers and digits of what was asked, each once.

    Without categories, which there are where this judge flags a latent.
    """
    found = {nameless(name) for name in file_names(folder, ".lock")}
    return sorted(name for name in found if not name.startswith("categories/"))


def nameless(name: str) -> str:
    name = re.sub(r"(?<=_latent)\d+", "#", name)
    name = re.sub(r"(?<=/)[0-9a-f]{12}(?=\.json)", "#", name)
    return re.sub(r"(?<=shared-\d-)\d+", "#", name)


def test_delphis_files(audit, place, golden):
    raw = audit / "cache/latents"
    found = {name: contents(raw / name) for name in file_names(raw) if name.endswith("tensors")}
    kinds = {name: sorted(tensors) for name, tensors in found.items()}
    golden.json("audit/latents", {"files": file_names(raw), "tensors": kinds})
    for file in raw.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        golden.json("audit/latents_config", normalised(config, place))
    config = json.loads((audit / "explain/run_config.json").read_text(encoding="utf-8"))
    golden.json("audit/run_config", normalised(config, place))


def test_the_table_of_latents(audit, golden):
    schema = pq.read_schema(audit / "features.parquet")
    columns = {field.name: [str(field.type), field.nullable] for field in schema}
    golden.json("features", columns)
    meanings = {
        field.name: (field.metadata or {}).get(b"meaning", b"").decode() for field in schema
    }
    golden.json("audit/meanings", meanings)


def test_nothing_is_left_to_do(audit, place, command):
    before = {file: file.stat().st_mtime_ns for file in audit.rglob("*") if file.is_file()}
    said = call("delphi_adapters", *command, "--out", audit)
    assert "Nothing to do" in said
    assert {f: f.stat().st_mtime_ns for f in audit.rglob("*") if f.is_file()} == before


def test_what_is_left_to_do(place, command, golden):
    out = ["--out", place / "planned", "--dry_run", "--json", place / "left.json"]
    said = call("delphi_adapters", *command, *out)
    left = json.loads((place / "left.json").read_text(encoding="utf-8"))
    golden.json("audit/left", normalised(left, place), shape=("/.*",))
    golden.text("audit/left", in_words(said, place))


@pytest.mark.parametrize("judged", [True, False], ids=["judge", "none"])
def test_explain(judged, judge, place, golden):
    out = place / f"explained-{judged}"
    options = ["--latents", "0", "1", "3", "--ctx_len", "32", "--device", "cpu", "--out", out]
    options += ["--min_firings", "5", "--pairs", "3000", *(judge if judged else [])]
    call("delphi_adapters", "explain", place / "run", *options)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    name = "judged" if judged else "described"
    golden.json(f"audit/explain_{name}", normalised(summary, place), shape=("/.*",))
    golden.json(f"audit/explain_{name}_files", names(out))


def test_rubric_and_reliability(judge, place, golden):
    options = ["--latent", "1", "--rubric", place / "rivers.yaml", "--s_max", "3", *judge]
    options += ["--backend", "hooks", "--device", "cpu", "--model_dtype", "float32"]
    out = ["--out", place / "rated", "--json", place / "rated.json"]
    call("delphi_adapters", "rubric", place / "run", *options, *out)
    rated = json.loads((place / "rated.json").read_text(encoding="utf-8"))
    golden.json("audit/rubric", normalised(rated, place), shape=("/.*",))
    golden.json("audit/rubric_files", file_names(place / "rated", ".lock", "lock"))
    again = ["--sample", "2", *judge, "--json", place / "again.json"]
    call("delphi_adapters", "reliability", place / "rated", *again)
    found = json.loads((place / "again.json").read_text(encoding="utf-8"))
    golden.json("audit/reliability", normalised(found, place), shape=("/.*",))
