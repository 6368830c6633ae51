"""Whose answers the conversations of an audit end with."""

import json
from pathlib import Path

import datasets
import pytest

from delphi_adapters.audit.answers import default_answers
from delphi_adapters.audit.pipeline import run_audit
from delphi_adapters.audit.stage import Context
from delphi_adapters.audit.stage_list import make_stages
from delphi_adapters.audit.stages.harvest import Harvest
from delphi_adapters.commands.audit import read_options
from sparsify_crosscoder.runs.options import parse_run_config
from tests.support.models import save_tiny_model
from tests.support.tokenizers import ANSWERABLE, byte_level_tokenizer, metaspace_tokenizer

TRAINING = ["--hookpoints", "layers.1", "h.1", "--device", "cpu"]
TRAINING += ["--ctx_len", "64", "--answer_tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answering")
    chat = metaspace_tokenizer(bos=True, chat_template=ANSWERABLE)
    save_tiny_model(folder / "a", "llama", byte_level_tokenizer(chat_template=ANSWERABLE), width=24)
    save_tiny_model(folder / "b", "gpt2", chat, width=24)
    save_tiny_model(folder / "base", "gpt2", metaspace_tokenizer(bos=True), width=24)
    turns = [{"role": "user", "content": "Where is the river?"}]
    turns += [{"role": "assistant", "content": "In the north, behind the wall."}]
    chats = "".join(json.dumps({"messages": turns}) + "\n" for _ in range(12))
    (folder / "chats.jsonl").write_text(chats, encoding="utf-8")
    (folder / "texts.txt").write_text("Some text that nobody says.\n" * 12, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("data", "partner", "answers"),
    [
        ("chats.jsonl", "b", "mix"),
        ("chats.jsonl", "base", "none"),
        ("texts.txt", "b", "none"),
        ("missing.jsonl", "b", "none"),
    ],
)
def test_two_chat_models_answer_conversations_unless_told_otherwise(folder, data, partner, answers):
    argv = [str(folder / "a"), str(folder / data), "--partners", str(folder / partner)]
    assert default_answers(parse_run_config(argv)) == answers


def context(folder: Path, out: Path, *more: str, data: str = "chats.jsonl") -> Context:
    argv = [str(folder / "a"), str(folder / "b"), "--dataset", str(folder / data)]
    config = read_options([*argv, "--out", str(out), *TRAINING, *more]).config
    return Context(config, make_stages(config))


def test_the_harvest_of_an_audit_says_and_counts_what_is_answered(folder, tmp_path, capsys):
    mix, own = context(folder, tmp_path), context(folder, tmp_path, "--answers", "none")
    stage = next(stage for stage in mix.stages if isinstance(stage, Harvest))
    assert stage.inputs(mix)["answers"] == "mix" and "answers" not in stage.inputs(own)
    # Two thirds of twelve conversations, six tokens each.
    assert stage.estimate(mix).counts["tokens to write"] == 48
    assert "tokens to write" not in stage.estimate(own).counts
    result = run_audit(mix.config, "harvest").to_dict()["stages"]["harvest"]
    assert result["answers"].keys() == {"A", "B"}
    assert "are answered by the models (--answers mix)" in capsys.readouterr().out
    assert "Nothing to do" not in capsys.readouterr().out
    run_audit(mix.config, "harvest")
    assert "Nothing to do" in capsys.readouterr().out


def test_the_inputs_of_plain_texts_are_what_they_were(folder, tmp_path):
    plain = context(folder, tmp_path, data="texts.txt")
    plain.training.answer_tokens = 256
    stage = next(stage for stage in plain.stages if isinstance(stage, Harvest))
    added = {"answers", "answer_tokens", "answer_seed", "template_tokens", "chat_template_from"}
    assert not added & stage.inputs(plain).keys()
