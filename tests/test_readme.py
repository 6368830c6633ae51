"""README and docs do what they say: Python is run as it stands, commands are understood."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import nnsight
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from delphi_adapters.__main__ import COMMANDS as ADAPTERS
from sparsify_crosscoder import Crosscoder, fit_stitching
from sparsify_crosscoder.__main__ import COMMANDS
from sparsify_crosscoder.command_line import dispatch
from sparsify_crosscoder.interventions.stitching import StitchingConfig
from sparsify_crosscoder.store.tensor_stream import TensorStream
from tests.support.audit_judge import AuditJudge
from tests.support.markdown import blocks, commands, pages, place
from tests.support.messages_server import KEY, MessagesServer

ROOT = Path(__file__).parents[1]
BLOCKS = [(place(page, block), block) for page in pages() for block in blocks(page)]
PYTHON = [(where, block) for where, block in BLOCKS if block.language == "python"]
LINES = [
    (where, words) for where, block in BLOCKS if block.language == "sh" for words in commands(block)
]
LANGUAGES = {"python", "sh", "toml", "bibtex"}
TABLES = {"sparsify-crosscoder": COMMANDS, "delphi_adapters": ADAPTERS}
TRAINING = ("train", "harvest")

# What is the demo's on the pages is the tiny run's here.
NAMES = {
    "layers.15+layers.9": "layers.1+h.2",
    "lm.model.layers[9]": "lm.transformer.h[2]",
    '"layers.9"': '"h.2"',
    r"\b368\b": "{shared}",
    "path/to/a/chat/model": "{chat_model}",
}


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Where the examples are run: the demo's run is in it, and its models' stitching."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(run, folder / "runs" / "demo")
    x = torch.randn(500, 24)
    pairs = TensorStream([x, x @ torch.randn(24, 32)], seed=0)
    fit_stitching(pairs, pairs, StitchingConfig(steps=2)).save(folder / "runs" / "stitch")
    (folder / "texts.jsonl").write_text(json.dumps({"text": "A text."}), encoding="utf-8")
    return folder


def nudged(model):
    """A copy of a model with other weights."""
    copy = deepcopy(model)
    for weight in copy.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return copy


@pytest.fixture
def given(run, folder, monkeypatch):
    """What the examples take as there, by name; a judge is on the loopback."""
    models = [run.parent / "llama", run.parent / "gpt2"]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in models]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(models[1]), tokenizers[1]
    prompts = ["The quick brown", "In 1989"]
    monkeypatch.chdir(folder)
    for name in ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with MessagesServer() as server:
        server.answer = AuditJudge()
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        yield {
            "model": model,
            "tokenizer": tokenizer,
            "prompts": prompts,
            "prompt": prompts[0],
            "base": model,
            "finetune": nudged(model),
            "vector": torch.randn(32),
            "questions": [f"In {year}" for year in range(1989, 1999)],
            "inputs": tokenizer(prompts[0], return_tensors="pt"),
            "lm": nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation"),
            "cc": Crosscoder.load_one(run),
            "x_a": torch.randn(5, 24),
            "x_b": torch.randn(5, 32),
            "tokenizer_a": tokenizers[0],
            "tokenizer_b": tokenizers[1],
            "tokenizers": tokenizers,
            "texts": prompts,
        }


@pytest.mark.parametrize(("where", "block"), PYTHON, ids=[where for where, _ in PYTHON])
def test_a_python_example_runs_as_it_stands(where, block, given, run, folder):
    shared = given["cc"].partition.shared[0]
    code = block.text
    for name, ours in NAMES.items():
        pattern = name if name.startswith("\\") else re.escape(name)
        ours = ours.format(shared=shared, chat_model=run.parent / "llama")
        code = re.sub(pattern, lambda _, ours=ours: ours, code)
    # A file of its own, because nnsight reads what it traces there.
    file = folder / (re.sub(r"\W", "_", where) + ".py")
    file.write_text(code, encoding="utf-8")
    before = set(given)
    exec(compile(code, str(file), "exec"), given)
    assert given.keys() > {*before, "__builtins__"}


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


def known_options(capsys, table, *argv: str) -> set[str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        dispatch("command", table, [*argv, "--help"])
    assert stop.value.code == 0
    return set(re.findall(r"--?\w+", capsys.readouterr().out))


def check(words: list[str], capsys) -> None:
    """That a command of a page is one, with the options that it is given."""
    program, *rest = words
    if program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{rest[0]}:", targets, re.MULTILINE)
    elif program == "torchrun":
        check(["python", *rest[rest.index("-m") :]], capsys)
    elif program == "python" and rest[0] == "-m":
        check([rest[1].replace("sparsify_crosscoder", "sparsify-crosscoder"), *rest[2:]], capsys)
    elif program == "python":
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in options_of(rest))
    elif program == "sparsify":
        check(["sparsify-crosscoder", "train", *rest], capsys)
    elif program in TABLES:
        name, table = rest[0], TABLES[program]
        assert name in table
        arch = ["--arch", rest[rest.index("--arch") + 1]] if "--arch" in rest else []
        known = known_options(capsys, table, name, *(arch if name in TRAINING else []))
        if name == "baselines" or (name == "audit" and arch):  # and the options of what it runs
            known |= known_options(capsys, COMMANDS, "harvest", *arch)
        assert options_of(rest) <= known
    else:
        assert program == "pip"


@pytest.mark.parametrize(("where", "words"), LINES, ids=[where for where, _ in LINES])
def test_a_command_is_one_with_options_that_there_are(where, words, capsys):
    check(words, capsys)


EXECUTED = {"top", "filter", "graft"}
NEED_MORE = {"--verify", "--q", "--filter"}
CHEAP = [
    (where, words)
    for where, words in LINES
    if words[0] == "sparsify-crosscoder" and words[1] in EXECUTED and not NEED_MORE & {*words}
]


@pytest.mark.parametrize(("where", "words"), CHEAP, ids=[where for where, _ in CHEAP])
def test_a_command_that_takes_a_run_alone_runs(where, words, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (path,) = [word for word in words if word.startswith(("runs/", "checkpoints/"))]
    shutil.copytree(run, tmp_path / path)
    latents = Crosscoder.load_one(run).num_latents
    argv = [str(int(word) % latents) if word.isdecimal() else word for word in words[1:]]
    with pytest.raises(SystemExit) as stop:
        dispatch("sparsify-crosscoder", COMMANDS, argv)
        raise SystemExit(0)
    said = capsys.readouterr()
    assert stop.value.code == 0, said.err
    assert said.out.strip()


def test_some_commands_are_run():
    assert {words[1] for _, words in CHEAP} == EXECUTED


def test_what_is_no_command_is_found(capsys):
    wrong = [
        "make nothing",
        "nothing",
        "python examples/nothing.py",
        "python examples/demo.py --nothing",
        "sparsify-crosscoder nothing run",
        "python -m delphi_adapters audit a b --nothing",
        "sparsify a b --arch dfc --nothing 3",
        "torchrun --nproc-per-node 8 -m sparsify a --arch dsf --exclusive_fractions 1",
    ]
    for line in wrong:
        with pytest.raises((AssertionError, OSError)):
            check(line.split(), capsys)


def test_every_block_is_of_a_language_that_is_looked_at():
    assert {block.language for _, block in BLOCKS} <= LANGUAGES


def test_commands_are_read_from_a_block(tmp_path):
    file = tmp_path / "a.md"
    text = "x\n```sh\nrun a \\\n  --b 'c d'  # e\ndata=3\n\n# f\nfor x in y; do\ndone\n```\n"
    file.write_text(text, encoding="utf-8")
    [block] = blocks(file)
    assert (block.line, block.language) == (2, "sh")
    assert commands(block) == [["run", "a", "--b", "c d"]]
    assert len(LINES) > 40
