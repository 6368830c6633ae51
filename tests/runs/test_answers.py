"""A run's texts with answers that its models write."""

import hashlib
import json
from pathlib import Path

import datasets
import pytest
import torch

from sparsify_crosscoder.commands import train
from sparsify_crosscoder.harvest import answering
from sparsify_crosscoder.runs import answers
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.pairs import harvest_run
from sparsify_crosscoder.runs.run import Run
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.stream import every_noted_pair
from sparsify_crosscoder.text.roles import NO_WRITER, Role
from tests.support.models import save_tiny_model
from tests.support.tokenizers import ANSWERABLE, byte_level_tokenizer, metaspace_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    one = byte_level_tokenizer(chat_template=ANSWERABLE)
    other = metaspace_tokenizer(bos=True, chat_template=ANSWERABLE)
    save_tiny_model(folder / "llama", "llama", one, width=24)
    save_tiny_model(folder / "twin", "llama", one, width=24, seed=1)
    save_tiny_model(folder / "gpt2", "gpt2", other, width=32)
    save_tiny_model(folder / "base", "gpt2", metaspace_tokenizer(bos=True), width=32)
    with open(folder / "chats.jsonl", "w", encoding="utf-8") as file:
        for n in range(60):
            turns = [
                {"role": "user", "content": f"What came down in {1900 + n}, and where was it?"},
                {"role": "assistant", "content": f"The wall number {n}, in the north."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "texts.txt").write_text("Some text of nobody.\n" * 40, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(answering, "ROWS", 8)
    monkeypatch.setattr(answers, "_GROUP", 20)
    datasets.disable_progress_bars()


def options(folder: Path, *more: str, partner="gpt2", data="chats.jsonl", hook="h.1") -> list[str]:
    return [
        *(str(folder / "llama"), str(folder / data), "--partners", str(folder / partner)),
        *("--hookpoints", "layers.1", hook, "--ctx_len", "96", "--device", "cpu"),
        *("--answer_tokens", "10", *more),
    ]


def harvest(folder: Path, *more: str, **changed):
    return harvest_run(parse_run_config(options(folder, *more, **changed)), CPU)


def contents(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def test_both_models_read_what_each_of_them_has_answered(folder):
    harvested = harvest(folder, "--cache", "store", "--answers", "both")
    store = ActivationStore.open("store")
    notes = store.notes(torch.arange(len(store)))
    assert set(notes.writer.tolist()) == {NO_WRITER, 0, 1}
    assert set(notes.role.tolist()) == {Role.USER, Role.ASSISTANT}
    assert ((notes.writer != NO_WRITER) == (notes.role == Role.ASSISTANT)).all()
    report = harvested.to_dict()["answers"]
    assert report.keys() == {"A", "B"}
    assert all(
        sum(count[n] for n in ("answers", "empty", "too long")) == 60 for count in report.values()
    )
    assert harvested.facts["alignment"]["texts"] == sum(c["answers"] for c in report.values())
    # A text has one writer, and another seed has others.
    for text in notes.text_id.unique().tolist():
        assert len(set(notes.writer[notes.text_id == text].tolist()) - {NO_WRITER}) <= 1
    harvest(folder, "--cache", "other", "--answers", "both", "--answer_seed", "1")
    first, second = (contents(Path(name) / "answers") for name in ("store", "other"))
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


def test_a_killed_harvest_loses_no_answer_and_ends_with_the_same_bytes(folder, monkeypatch):
    given = ("--answers", "mix", "--cache")
    harvest(folder, *given, "whole")
    write, left = answers.write_answers, [3]

    def killed(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(*args)

    monkeypatch.setattr(answers, "write_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        harvest(folder, *given, "killed")
    assert len(list(Path("killed/answers").iterdir())) == 3
    written: list[int] = []
    monkeypatch.setattr(answers, "write_answers", lambda *a: written.append(1) or write(*a))
    harvest(folder, *given, "killed")
    assert contents(Path("killed")) == contents(Path("whole"))
    assert len(written) == len(list(Path("whole/answers").iterdir())) - 3
    written.clear()
    harvest(folder, *given, "killed")
    assert not written and contents(Path("killed")) == contents(Path("whole"))


def test_a_run_reads_its_answers_again_from_its_store_and_from_its_folder(folder):
    coder = ["--num_latents", "32", "--k", "2", "--pairs_per_step", "64", "--max_steps", "3"]
    coder += ["--log_to_wandb", "False"]
    chosen = ["--arch", "crosscoder", *coder, "--held_out_pairs", "60", "--run_name"]
    given = ("--answers", "mix", "--answer_seed", "4")
    train.main([*options(folder, *given, "--cache", "store"), *chosen, "stored"])
    train.main([*options(folder, *given), *chosen, "live"])
    train.main([str(folder / "llama"), "store", *coder, *chosen[:2], "--run_name", "from"])
    Path("checkpoints/live").rename("moved")
    runs = [Run.open(path) for path in ("checkpoints/stored", "moved", "checkpoints/from")]
    texts = [run.texts() for run in runs]
    assert texts[0]["messages"][:] == texts[1]["messages"][:] == texts[2]["messages"][:]
    assert {*texts[0]["writer"]} == {NO_WRITER, 0, 1}
    sums = []
    for run in runs:
        noted = [notes for _, notes in every_noted_pair(run.pairs("cpu"), 500)]
        sums.append([int(sum((n.writer == w).sum() for n in noted)) for w in (-1, 0, 1)])
    assert sums[0] == sums[1] == sums[2] and min(sums[0]) > 0


def test_only_as_many_prompts_are_answered_as_the_pairs_need(folder):
    found = harvest(folder, "--cache", "store", "--answers", "A", "--pairs", "300")
    assert found.pairs >= 300
    assert found.to_dict()["answers"]["A"]["answers"] <= 40


def test_a_model_without_a_template_answers_plain_text(folder):
    with pytest.raises(ValueError, match="base has no chat template"):
        harvest(folder, "--cache", "store", "--answers", "B", partner="base")
    plain = ("--chat_format", "plain", "--answers", "B")
    harvest(folder, "--cache", "store", *plain, partner="base")
    notes = ActivationStore.open("store").notes(torch.arange(500))
    assert set(notes.writer.tolist()) == {NO_WRITER, 1}


def test_template_tokens_go_with_answers(folder):
    given = ("--answers", "mix", "--template_tokens", "True", "--cache")
    harvest(folder, *given, "store", partner="twin", hook="layers.2")
    notes = ActivationStore.open("store").notes(torch.arange(800))
    assert set(notes.role.tolist()) == {Role.USER, Role.ASSISTANT, Role.TEMPLATE}
    assert (notes.writer[notes.role == Role.TEMPLATE] == NO_WRITER).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": "texts.txt"}, "holds plain texts, and only conversations have prompts"),
        ({"more": ("--append", "True")}, "do not go together"),
    ],
)
def test_what_cannot_be_answered_is_refused(changed, said, folder):
    more = changed.pop("more", ())
    with pytest.raises(ValueError, match=said):
        harvest(folder, "--cache", "store", "--answers", "A", *more, **changed)


def test_other_answers_are_refused_in_a_store_that_has_some(folder):
    harvest(folder, "--cache", "store", "--answers", "A")
    before = contents(Path("store"))
    for other in (("--answers", "B"), ("--answers", "A", "--answer_seed", "1")):
        with pytest.raises(ValueError, match="give another folder for other answers"):
            harvest(folder, "--cache", "store", *other)
    Path("store/manifest.json").rename("kept.json")
    with pytest.raises(ValueError, match="holds other files"):
        harvest(folder, "--cache", "store", "--answers", "A")
    Path("kept.json").rename("store/manifest.json")
    assert contents(Path("store")) == before
