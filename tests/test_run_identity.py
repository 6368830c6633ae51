"""A run is of its models and texts: others are refused wherever these are read again."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from tests.support.command_line import CODER, RUN, SENTENCES, command
from tests.support.models import change_a_value, put_into_hub_cache, save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

COMMITS = ["a" * 40, "b" * 40]
LOOKED_AT = {
    "top": ["--pairs", "300", "--count", "1", "--snippets", "1"],
    "filter": ["--pairs", "500", "--min_firings", "5"],
}


def write_texts(file: Path, first: int = 0) -> None:
    with open(file, "w", encoding="utf-8") as opened:
        for n in range(first, first + 150):
            text = " ".join(s.format(n=n * 7, m=n + 1900) for s in SENTENCES)
            opened.write(json.dumps({"text": text}) + "\n")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=24, layers=3)
    save_tiny_model(folder / "gpt2", "gpt2", metaspace_tokenizer(bos=True), width=32, layers=3)
    write_texts(folder / "texts.jsonl")
    return folder


@pytest.fixture
def inputs(originals, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(originals, tmp_path / "in")
    return tmp_path / "in"


def failure(capsys, job) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        job()
    assert stop.value.code == 1
    return capsys.readouterr().err


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(what: str, inputs: Path) -> str:
    """Change what a run was made from; returns what the refusal says."""
    if what == "texts":
        file = inputs / "texts.jsonl"
        file.write_text(file.read_text(encoding="utf-8").replace("lazy", "eager"), encoding="utf-8")
        return "are not those that the run was begun with"
    if what == "texts of as many pairs":
        write_texts(inputs / "texts.jsonl", first=1)
        return "are not those that the run was begun with"
    if what == "weights":
        change_a_value(inputs / "gpt2")
    else:
        config = json.loads((inputs / "gpt2" / "config.json").read_text(encoding="utf-8"))
        config["layer_norm_epsilon"] = 0.5
        (inputs / "gpt2" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"'{inputs / 'gpt2'}', has other weights or settings now"


CHANGES = [
    "texts of as many pairs",
    "weights",
    *(pytest.param(what, marks=pytest.mark.slow) for what in ("texts", "a setting")),
]


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_of_a_run_goes_on_with_other_models_or_texts(what, inputs, capsys):
    train.main(command(inputs))
    before = contents(RUN)
    said = change(what, inputs)
    for job in (
        lambda: train.main(command(inputs, "--resume")),
        *(lambda name=name: main([name, str(RUN), *LOOKED_AT[name]]) for name in LOOKED_AT),
    ):
        assert said in failure(capsys, job)
    assert contents(RUN) == before


def test_a_run_from_a_store_goes_on_with_that_store_alone(inputs, capsys):
    main(["harvest", *command(inputs, "--cache", "store")])
    from_store = command(inputs, dataset="store", partners="", hookpoints="")
    train.main(from_store)
    train.main([*from_store, "--resume"])
    before = contents(RUN)
    shutil.move("store", "kept")
    write_texts(inputs / "texts.jsonl", first=1)
    main(["harvest", *command(inputs, "--cache", "store")])
    for job in (
        lambda: train.main([*from_store, "--resume"]),
        *(lambda name=name: main([name, str(RUN), *LOOKED_AT[name]]) for name in LOOKED_AT),
    ):
        assert "is not the one that the run was begun with: it holds other texts" in failure(
            capsys, job
        )
    shutil.rmtree("store")
    shutil.move("kept", "store")
    assert contents(RUN) == before
    main(["top", str(RUN), *LOOKED_AT["top"]])


def test_a_store_that_has_grown_is_still_that_of_the_run(inputs, capsys):
    main(["harvest", *command(inputs, "--cache", "store", "--pairs", "9_000")])
    train.main(command(inputs, dataset="store", partners="", hookpoints=""))
    main(["harvest", *command(inputs, "--cache", "store", "--pairs", "10_000", "--append")])
    main(["top", str(RUN), *LOOKED_AT["top"]])
    resumed = command(inputs, "--resume", dataset="store", partners="", hookpoints="")
    assert "other texts" in failure(capsys, lambda: train.main(resumed))


def test_resuming_a_run_that_was_not_begun_begins_it_and_says_so(inputs, capsys):
    train.main(command(inputs, "--resume"))
    assert "There is no run in 'checkpoints/run' yet: it is begun." in capsys.readouterr().out
    train.main(command(inputs, run_name="plain"))
    resumed, plain = (
        load_file(Path("checkpoints") / run / CODER.name / "sae.safetensors")
        for run in ("run", "plain")
    )
    assert all(torch.equal(resumed[name], plain[name]) for name in plain)
    configs = [
        json.loads((Path("checkpoints") / run / "config.json").read_text(encoding="utf-8"))
        for run in ("run", "plain")
    ]
    assert configs[0]["trained_on"] == configs[1]["trained_on"]
    assert configs[0]["resume"] is False


def test_a_run_without_a_record_goes_on_and_it_is_said(inputs, caplog):
    train.main(command(inputs))
    config = json.loads((RUN / "config.json").read_text(encoding="utf-8"))
    for name in ("trained_on", "partner_revisions"):
        del config[name]
    (RUN / "config.json").write_text(json.dumps(config), encoding="utf-8")
    train.main(command(inputs, "--resume"))
    assert "has no record of its models and texts" in caplog.text
    caplog.clear()
    train.main(command(inputs, "--resume"))  # it has one now
    assert "has no record" not in caplog.text
    main(["top", str(RUN), *LOOKED_AT["top"]])


def test_a_run_that_was_moved_and_renamed_works(inputs, capsys):
    train.main(command(inputs))
    shutil.copytree(RUN, RUN / "backup")
    RUN.rename("elsewhere")
    main(["top", "elsewhere", *LOOKED_AT["top"]])
    name = f"elsewhere/{CODER.name}"
    error = failure(capsys, lambda: main(["top", name, *LOOKED_AT["top"]]))
    assert f"'{name}' holds no run" in error and "crosscoder of the run 'elsewhere'" in error


def test_models_of_one_last_name_are_shown_apart(inputs, capsys):
    for name, model in (("base", "llama"), ("sft", "gpt2")):
        (inputs / name).mkdir()
        (inputs / model).rename(inputs / name / "final")
    names = {"model": str(inputs / "base/final"), "partners": str(inputs / "sft/final")}
    train.main(command(inputs, **names))
    main(["top", str(RUN), *LOOKED_AT["top"]])
    main(["filter", str(RUN), *LOOKED_AT["filter"]])
    printed = capsys.readouterr().out
    for line in ("  base/final layers.1: FVE", "  sft/final h.2: FVE", "A base/final  "):
        assert line in printed
    assert "\nbase/final: " in printed and "\nsft/final: " in printed


@pytest.fixture
def hub(inputs, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_tiny_model(inputs / "tuned", "llama", byte_level_tokenizer(), width=24, layers=3, seed=1)
    folders = {COMMITS[0]: inputs / "llama", COMMITS[1]: inputs / "tuned"}
    put_into_hub_cache(tmp_path / "hub", "org/m", folders, main=COMMITS[0], step2=COMMITS[1])
    return tmp_path / "hub" / "models--org--m"


def test_a_run_over_two_revisions_keeps_to_its_commits(hub, inputs, capsys):
    revisions = {"model": "org/m", "partners": "org/m", "hookpoints": "layers.1 layers.1"}
    argv = command(inputs, "--partner_revisions", "step2", **revisions)
    train.main(argv)
    recorded = json.loads((RUN / "config.json").read_text(encoding="utf-8"))["trained_on"][
        "sources"
    ]
    assert [source["revision"] for source in recorded] == COMMITS
    assert recorded[0]["checkpoint"] != recorded[1]["checkpoint"]
    assert "m@aaaaaaaa layers.1: FVE" in capsys.readouterr().out
    main(["top", str(RUN), *LOOKED_AT["top"], "--json", "before.json"])
    (hub / "refs" / "main").write_text(COMMITS[1], encoding="utf-8")
    main(["top", str(RUN), *LOOKED_AT["top"], "--json", "after.json"])
    assert Path("before.json").read_text(encoding="utf-8") == Path("after.json").read_text(
        encoding="utf-8"
    )
    assert "A m@aaaaaaaa" in capsys.readouterr().out
    train.main([*argv, "--resume"])
    shutil.rmtree(hub / "snapshots" / COMMITS[0])
    error = failure(capsys, lambda: main(["top", str(RUN), *LOOKED_AT["top"]]))
    assert f"'org/m' at revision '{COMMITS[0]}'" in error


def test_a_store_over_two_revisions_is_of_these(hub, inputs, capsys):
    revisions = {"model": "org/m", "partners": "org/m", "hookpoints": "layers.1 layers.1"}
    main(["harvest", *command(inputs, "--partner_revisions", "step2", "--cache", "s", **revisions)])
    main(["store", "s", "--show", "3"])
    printed = capsys.readouterr().out
    assert "org/m@aaaaaaaa  layers.1" in printed and "B m@bbbbbbbb:" in printed
    (hub / "refs" / "main").write_text(COMMITS[1], encoding="utf-8")
    of_store = {**revisions, "dataset": "s", "hookpoints": ""}
    train.main(command(inputs, **of_store))
    main(["top", str(RUN), *LOOKED_AT["top"]])
    assert "A m@aaaaaaaa" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main(command(inputs, "--partner_revisions", "main", "--revision", "main", **of_store))
    error = capsys.readouterr().err
    assert "org/m@aaaaaaaa at layers.1, org/m@bbbbbbbb" in error
    assert "it is the store's model 2" in error


def test_the_token_reaches_every_command_and_no_file(inputs, monkeypatch, capsys):
    from sparsify_crosscoder.harvest import sources

    tokens = set()
    load = sources.load_tokenizer

    def noted(model):
        tokens.add(model.token)
        return load(model)

    monkeypatch.setattr(sources, "load_tokenizer", noted)
    token = ["--hf_token", "hf_secret"]
    train.main(command(inputs, *token))
    shutil.copytree(RUN, RUN.parent / "other")
    prompts = ["--prompts", "The", "--max_new_tokens", "2", "--strengths", "1", "--device", "cpu"]
    commands = [
        ["top", str(RUN), *LOOKED_AT["top"]],
        ["filter", str(RUN), *LOOKED_AT["filter"]],
        ["stability", str(RUN), "checkpoints/other", *LOOKED_AT["filter"]],
        ["steer", str(RUN), "--latents", "40", "--s_max", "2", "--backend", "hooks", *prompts],
    ]
    for number, argv in enumerate(commands):
        assert tokens == {"hf_secret"}
        tokens.clear()
        main([*argv, *token, "--json", f"{number}.json"])
    assert tokens == {"hf_secret"}
    written = contents(Path())
    assert Path("3.json") in written
    assert not [path for path, data in written.items() if b"hf_secret" in data]
    printed = capsys.readouterr()
    assert "hf_secret" not in printed.out + printed.err
