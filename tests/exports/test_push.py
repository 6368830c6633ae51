"""A run on the hub, by the hub's own SDK and a server that speaks its protocol."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sparsify_crosscoder import Crosscoder, PushConfig, Run, push
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.exports.privacy import found_private, is_local, shareable, without_places
from sparsify_crosscoder.exports.push import gather
from tests.support.hub_server import HubServer

TOKEN = "hf_" + "a1B2" * 9
CODER = "layers.1+h.2"
FILES = {"README.md", "config.json", "summary.json", "metrics.jsonl"}
FILES |= {f"{CODER}/cfg.json", f"{CODER}/sae.safetensors"}


def command(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads its surroundings on import."""
    usual = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sparsify_crosscoder", *argv],
        env={**os.environ, **usual, **env},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def listed(folder: Path) -> Path:
    """What `filter --json` writes of a run with two findings and a null, as far as a card reads."""
    rows = [{"finding": finding, "q_value": q} for finding, q in ((True, 0.02), (True, 0.08))]
    found = {
        "verdicts": [],
        "clusters": [],
        "duplicates": [],
        "latents": [],
        "rows": [*rows, {"finding": False, "q_value": 0.5}],
        "nulls": [{"name": "layer-0", "findings": 3, "tested": 600}],
    }
    (folder / "filter.json").write_text(json.dumps(found), encoding="utf-8")
    return folder / "filter.json"


def test_a_run_is_uploaded_with_its_card_and_loads_again(run, tmp_path):
    with HubServer() as hub:
        argv = ["push", str(run), "someone/tiny-diff", "--hf_token", TOKEN, "--private"]
        argv += ["--filter", str(listed(tmp_path)), "--license", "mit"]
        done = command(*argv, HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        assert "Uploaded to someone/tiny-diff" in done.stdout
        assert hub.options["someone/tiny-diff"]["visibility"] == "private"
        assert f"Bearer {TOKEN}" in hub.tokens
        files = hub.files["someone/tiny-diff"]
    assert set(files) == FILES
    for name, content in files.items():
        (tmp_path / "loaded" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loaded" / name).write_bytes(content)
    opened, own = Run.open(tmp_path / "loaded"), Run.open(run)
    for name, weight in own.crosscoder().state_dict().items():
        torch.testing.assert_close(opened.crosscoder().state_dict()[name], weight, equal_nan=True)
    assert opened.summary().fve == own.summary().fve
    assert opened.config.hookpoints == own.config.hookpoints
    assert Crosscoder.load_from_disk(tmp_path / "loaded" / CODER).num_latents == 64
    for name, content in files.items():
        for secret in (TOKEN, str(run.parent), str(Path.home()), "/tmp"):
            assert secret.encode() not in content, (name, secret)


def test_a_hub_that_is_not_reached_is_said_in_one_line(run):
    done = command("push", str(run), "someone/diff", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "someone/diff could not be uploaded" in done.stderr and "fault" not in done.stderr


def test_the_card_says_what_a_reader_needs(run, tmp_path):
    record = json.loads(listed(tmp_path).read_text(encoding="utf-8"))
    card = push(Run.open(run), PushConfig("someone/diff", record, "mit"), dry_run=True).card
    _, head, text = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "sparsify-crosscoder" and data["license"] == "mit"
    assert "base_model" not in data  # both are folders here
    summary = Run.open(run).summary()
    assert summary.fve_per_source is not None
    for part in (
        *("| A | llama (a local folder) |", "| B | gpt2 (a local folder) |", "layers.1", "h.2"),
        *("| k | 4 |", "| data | texts.txt |", f"{summary.fve_per_source[1]:.4f}"),
        *("2 findings of 3 entries", "3 findings of 600", "0.500%", "Largest q of the findings"),
        'Crosscoder.load_from_hub("someone/diff", "layers.1+h.2")',
    ):
        assert part in text, part


def test_models_and_data_of_the_hub_are_in_the_metadata(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("config.json", "summary.json"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace(str(run.parent / "llama"), "meta/llama")
        text = text.replace(str(run.parent / "gpt2"), "openai/gpt2")
        text = text.replace(str(run.parent / "texts.txt"), "wiki/text")
        (folder / name).write_text(text, encoding="utf-8")
    card = push(Run.open(folder), PushConfig("someone/diff"), dry_run=True).card
    data = yaml.safe_load(card.split("---\n", 2)[1])
    assert data["base_model"] == ["meta/llama", "openai/gpt2"]
    assert data["datasets"] == ["wiki/text"]
    assert "no rate of false entries is known" in card and "local folder" not in card


def test_a_dry_run_needs_no_network_and_lists_the_files(run, monkeypatch, capsys, tmp_path):
    def no_network(*_, **__):
        raise AssertionError("a dry run speaks to nobody")

    monkeypatch.setattr("socket.socket.connect", no_network)
    main(["push", str(run), "diff", "--dry_run", "--json", str(tmp_path / "pushed.json")])
    said = capsys.readouterr().out
    assert "# diff" in said and "Nothing was uploaded to diff" in said
    pushed = json.loads((tmp_path / "pushed.json").read_text(encoding="utf-8"))
    assert set(pushed["files"]) == FILES and pushed["url"] is None
    weights = run / CODER / "sae.safetensors"
    assert pushed["files"][f"{CODER}/sae.safetensors"] == weights.stat().st_size


@pytest.mark.parametrize("name", ["a/b/c", "a b", "-x", ""])
def test_a_name_that_the_hub_would_refuse_is_refused_here(name, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["push", str(run), "--dry_run", "--", name])
    assert stopped.value.code == 2 and "no name of a repository" in capsys.readouterr().err


def test_what_is_private_is_left_out(tmp_path):
    (tmp_path / "models").mkdir()
    there = str(tmp_path / "models")
    assert without_places(there) == "models"
    assert without_places("/home/some one/base+/data/adapter") == "base+adapter"
    assert without_places("meta/llama+/data/adapters/x") == "meta/llama+x"
    assert without_places("a store in /data/stores/a: see C:\\Users\\me\\x") == (
        "a store in a: see x"
    )
    assert without_places(f"token {TOKEN}") == "token TOKEN"
    for text in (
        "google/gemma-2-2b",
        "and/or",
        "layers.15+layers.15",
        "https://x.org/a/b",
        "1/2/3",
    ):
        assert without_places(text) == text and not found_private(text)
    assert shareable({there: [{"a": there, "b": 1.5}, None]}) == {
        "models": [{"a": "models", "b": 1.5}, None]
    }
    assert is_local(there) and is_local(f"meta/llama+{there}") and not is_local("meta/llama")
    assert found_private(f"see /home/me/x and {TOKEN}") == ["/home/me/x", TOKEN]


def test_what_is_still_private_stops_the_upload(run, tmp_path, monkeypatch):
    """A card that names a place, as through a later change, is not sent."""
    monkeypatch.setattr(
        "sparsify_crosscoder.exports.push.model_card", lambda *_: "see /home/me/notes.txt"
    )
    with pytest.raises(ValueError, match=re.escape("'/home/me/notes.txt', which is private")):
        gather(Run.open(run), PushConfig("a/b"), tmp_path / "folder")
