"""The command, on tiny random models of two architectures with tokenizers of their own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparsify_crosscoder import ActivationStore, Crosscoder, RDFCConfig
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.registry import get_architecture
from sparsify_crosscoder.runs.config import run_config_class
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.summary import RunSummary
from tests.support.command_line import CODER, RUN, command, save_inputs
from tests.support.fresh import run_fresh
from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("arch", ["crosscoder", "dfc", "rdfc"])
def test_two_models_train_from_the_command_line(arch, inputs, capsys):
    train.main(command(inputs, "--json", "summary.json", arch=arch))
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    assert summary["arch"] == arch
    assert summary["data"]["alignment"]["aligned_fraction"][0] > 0.5
    (roles,) = summary["data"]["alignment"]["characters"].values()
    assert roles["all"]["share"] > 0.5
    assert summary["data"]["harvest_train"]["pairs"] > 0
    assert {"sae.safetensors", "cfg.json"} == {p.name for p in CODER.iterdir()}
    assert json.loads(Path("summary.json").read_text(encoding="utf-8"))["fve"] == summary["fve"]
    crosscoder = Crosscoder.load_from_disk(CODER)
    assert crosscoder.d_sources == [24, 32]
    assert [source["hookpoint"] for source in crosscoder.sources] == ["layers.1", "h.2"]
    if arch != "crosscoder":
        block = crosscoder.partition.exclusive(0)
        assert len(block) == 3 and not crosscoder.decoder(1)[block.start : block.stop].any()
    assert "held-out FVE" in capsys.readouterr().out


@pytest.mark.parametrize("store", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_runs_exclusive_latents_are_filtered(store, inputs, capsys):
    options = ("--cache", "store") if store else ()
    train.main(command(inputs, *options, arch="rdfc"))
    coder = load_file(CODER / "sae.safetensors")
    assert coder["maps"].shape == (56, 56) and coder["maps"].any()
    main(["filter", str(RUN), "--min_firings", "5", "--pairs", "4000", "--json", "found.json"])
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert f"{len(found['clusters'])} clusters of kept latents" in printed
    assert [sum(counts.values()) for counts in found["verdicts"]] == [
        sum(row["source"] == s for row in found["latents"]) for s in (0, 1)
    ]
    kept = {row["latent"] for row in found["latents"] if row["verdict"] == "kept"}
    assert kept == {latent for one in found["clusters"] for latent in one["latents"]}
    assert found["filter"]["pairs"] == 4000 and found["arch"] == "rdfc"


LENIENT = ("--predictability", "9", "--shadow", "99", "--min_firings", "5", "--pairs", "4000")


def test_the_same_run_twice_finds_the_same_differences_and_another_seed_others(inputs, capsys):
    for name, seed in (("run", "0"), ("again", "0"), ("other", "1")):
        options = ("--run_name", name, "--init_seeds", seed, "--cache", "store")
        train.main(command(inputs, *options, arch="dfc"))
    runs = [str(RUN.parent / name) for name in ("run", "again", "other")]
    capsys.readouterr()
    main(["stability", *runs[:2], *LENIENT, "--json", "twice.json"])
    twice = json.loads(Path("twice.json").read_text(encoding="utf-8"))
    assert twice["runs"] == {"run": runs[0], "again": runs[1]}
    count = len(twice["clusters"]["run"])
    assert count > 2 and twice["clusters"]["run"] == twice["clusters"]["again"]
    assert all(set(one["members"]) == {"run", "again"} for one in twice["differences"])
    assert 0 < twice["null_correlation"] < 1
    printed = capsys.readouterr().out
    assert f"run: {twice['verdicts']['run']['kept']} kept, {count} clusters" in printed
    assert "| 2/2 |" in printed and "| - |" not in printed
    main(["stability", *runs, *LENIENT, "--json", "three.json"])
    three = json.loads(Path("three.json").read_text(encoding="utf-8"))
    in_all = [one for one in three["differences"] if len(one["members"]) == 3]
    assert len(in_all) < len(three["differences"])


@pytest.mark.slow
def test_the_seeds_of_one_run_are_compared_and_null_runs_are_of_the_same_texts(inputs, capsys):
    train.main(command(inputs, "--init_seeds", "0", "1", "--cache", "store", arch="dfc"))
    itself = {"partners": str(inputs / "llama"), "hookpoints": "layers.1 layers.2"}
    train.main(command(inputs, "--cache", "own", arch="dfc", run_name="null", **itself))
    capsys.readouterr()
    main(["stability", str(RUN), *LENIENT, "--json", "seeds.json"])
    found = json.loads(Path("seeds.json").read_text(encoding="utf-8"))
    assert list(found["runs"]) == ["run/seed0", "run/seed1"]
    assert found["same_order"] == [["run/seed0", "run/seed1"]] and found["same_seed"] == []
    assert found["matching"]["cosine"] == 0.7 and found["own_run"]["of"] > 2
    printed = capsys.readouterr().out
    assert "Data order: the same for run/seed0, run/seed1." in printed
    assert "Initial seed: another for every run." in printed
    null = str(RUN.parent / "null")
    with pytest.raises(SystemExit):
        main(["stability", str(RUN), "--nulls", null, *LENIENT])
    assert "was not trained on the texts of" in capsys.readouterr().err
    layer = {"hookpoints": "layers.2 h.2", "run_name": "layer"}
    train.main(command(inputs, "--cache", "layer", arch="dfc", **layer))
    main(["stability", str(RUN), "--nulls", "checkpoints/layer", *LENIENT, "--json", "null.json"])
    assert json.loads(Path("null.json").read_text(encoding="utf-8"))["nulls"]["layer"]["of"] > 2
    assert "that match one of the null run layer: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "runs, complaint", [(["run"], "two runs or more"), (["run", "nowhere"], "holds no run")]
)
def test_stability_without_two_runs_ends_with_1(runs, complaint, inputs, capsys):
    train.main(command(inputs, arch="dfc"))
    with pytest.raises(SystemExit) as stop:
        main(["stability", *(str(RUN.parent / run) for run in runs)])
    assert stop.value.code == 1
    assert complaint in capsys.readouterr().err


def test_filtering_what_is_no_run_ends_with_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["filter", str(tmp_path)])
    assert stop.value.code == 1
    assert "holds no run" in capsys.readouterr().err


def test_no_token_is_written_to_any_file(inputs):
    train.main(command(inputs, "--hf_token", "hf_secret"))
    files = [path for path in Path("checkpoints").rglob("*") if path.is_file()]
    assert RUN / "config.json" in files
    assert not any(b"hf_secret" in path.read_bytes() for path in files)


def test_left_out_hookpoints_are_the_middle_layers(inputs):
    train.main(command(inputs, hookpoints=""))
    assert (RUN / "layers.2+h.2" / "sae.safetensors").exists()


def test_layers_stand_for_hookpoints(inputs):
    train.main(command(inputs, "--layers", "1", "3", hookpoints=""))
    assert (RUN / "layers.1+h.3").is_dir()


def test_dsf_trains_on_equal_widths_and_says_so_otherwise(inputs, tmp_path, capsys):
    save_tiny_model(tmp_path / "twin", "gpt2", metaspace_tokenizer(), width=24)
    train.main(command(inputs, arch="dsf", partners=str(tmp_path / "twin")))
    crosscoder = Crosscoder.load_from_disk(CODER)
    assert torch.equal(crosscoder.decoder(0)[:6], crosscoder.decoder(1)[:6])
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs, arch="dsf", run_name="other"))
    assert stop.value.code == 1
    assert "equal widths, got [24, 32]" in capsys.readouterr().err
    assert not Path("checkpoints/other").exists()


def test_three_models(inputs, tmp_path):
    save_tiny_model(tmp_path / "third", "qwen3", byte_level_tokenizer(vocab_size=500), width=16)
    argv = command(
        inputs,
        "--exclusive_fractions", "0.1", "0.1", "0.1",
        partners=f"{inputs / 'gpt2'} {tmp_path / 'third'}",
        hookpoints="layers.1 h.2 layers.3",
    )  # fmt: skip
    train.main(argv)
    assert Crosscoder.load_from_disk(RUN / "layers.1+h.2+layers.3").d_sources == [24, 32, 16]


def test_training_from_an_activation_store_equals_training_again_from_it(inputs, capsys):
    main(["harvest", *command(inputs, "--cache", "store")])
    assert '"aligned_fraction"' in capsys.readouterr().out
    train.main(command(inputs, "--cache", "store"))
    train.main(command(inputs, "--cache", "store", run_name="again"))
    first, again = (
        load_file(Path("checkpoints") / run / "layers.1+h.2" / "sae.safetensors")
        for run in ("run", "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_where_models_are_changes_no_activation(inputs):
    main(["harvest", *command(inputs, "--cache", "plain")])
    main(["harvest", *command(inputs, "--cache", "placed", devices="cpu cpu")])
    main(["harvest", *command(inputs, "--cache", "spread", device_map="auto")])
    stores = [sorted(Path(name).glob("*.safetensors")) for name in ("plain", "placed", "spread")]
    assert stores[0]
    for files in zip(*stores, strict=True):
        assert len({file.read_bytes() for file in files}) == 1


def test_harvest_refuses_a_device_that_is_not_there(inputs, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["harvest", *command(inputs, "--cache", "store", device="cuda:99")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "no device 'cuda:99' here" in error and error.count("\n") == 1
    assert not Path("store").exists()


def test_a_run_is_looked_at_where_its_devices_are_not(inputs, monkeypatch):
    train.main(command(inputs, devices="cpu cpu"))
    config = json.loads((RUN / "config.json").read_text(encoding="utf-8"))
    (RUN / "config.json").write_text(
        json.dumps({**config, "devices": ["cuda:98", "cuda:99"]}), encoding="utf-8"
    )
    main(["top", str(RUN), "--pairs", "500", "--count", "1", "--json", "top.json"])
    assert json.loads(Path("top.json").read_text(encoding="utf-8"))


def saved(run):
    return load_file(Path("checkpoints") / run / "layers.1+h.2" / "sae.safetensors")


def test_training_from_a_store_needs_neither_models_nor_texts(inputs, tmp_path, capsys):
    train.main(command(inputs, "--cache", "store"))
    main(["top", str(RUN), "--pairs", "500", "--latents", "3", "--json", "before.json"])
    hidden = inputs.rename(inputs.with_name("hidden"))
    try:
        from_store = {"dataset": "store", "partners": "", "hookpoints": ""}
        train.main(command(inputs, run_name="alone", **from_store))
        moved = {"model": f"{hidden}/llama", "partners": f"{hidden}/gpt2", "dataset": "store"}
        train.main(command(inputs, run_name="moved", **moved))
        main(["filter", "checkpoints/alone", "--min_firings", "5", "--pairs", "4000"])
    finally:
        hidden.rename(inputs)
    for run in ("alone", "moved"):
        assert all(torch.equal(saved("run")[name], saved(run)[name]) for name in saved("run"))
    first, alone = (
        json.loads((Path("checkpoints") / run / "summary.json").read_text(encoding="utf-8"))
        for run in ("run", "alone")
    )
    assert first["data"]["alignment"] == alone["data"]["alignment"]
    assert first["sources"] == alone["sources"] and first["fve"] == alone["fve"]
    main(["top", "checkpoints/alone", "--pairs", "500", "--latents", "3", "--json", "after.json"])
    assert Path("before.json").read_text(encoding="utf-8") == Path("after.json").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"model": "other"}, [], "holds .*llama at layers.1, .*gpt2 at h.2; name the same models"),
        ({"partners": "other"}, [], "name the same models in this order"),
        ({"hookpoints": "layers.1 h.1"}, [], "leave --hookpoints and --layers off"),
        ({}, ["--pairs", "100"], "--pairs has no meaning where the store"),
        ({}, ["--cache", "more"], "--cache has no meaning where the store"),
    ],
)
def test_a_store_that_does_not_fit_the_command_is_refused(
    inputs, changed, options, message, capsys
):
    main(["harvest", *command(inputs, "--cache", "store", "--pairs", "500")])
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs, *options, dataset="store", **changed))
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)
    assert not RUN.exists()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_harvest_reads_as_many_texts_as_give_the_pairs_asked_for(dtype, inputs, capsys):
    argv = command(inputs, "--cache", "store", "--dtype", dtype, "--json", "report.json")
    main(["harvest", *argv, "--pairs", "2_000"])
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["dtype"] == dtype and report["harvest"]["pairs"] == report["pairs"]
    store = ActivationStore.open("store")
    texts = np.array(store.windows["text_id"])
    counts = np.array(store.windows["num_pairs"])
    assert len(store) == report["pairs"] >= 2000 > len(store) - counts[texts == texts[-1]].sum()
    main(["harvest", *argv, "--pairs", "3_000", "--append"])
    longer = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert longer["pairs"] >= 3000 and longer["harvest"]["pairs"] == longer["pairs"] - len(store)
    main(["harvest", *argv, "--pairs", "3_000"])
    assert json.loads(Path("report.json").read_text(encoding="utf-8"))["harvest"]["pairs"] == 0
    with pytest.raises(SystemExit) as stop:
        main(["harvest", *argv, "--pairs", "1_000_000"])
    assert stop.value.code == 1
    assert re.search(r"All 300 texts give [\d,]+ pairs, fewer than", capsys.readouterr().err)


@pytest.mark.slow
def test_two_processes_harvest_the_bytes_of_one(inputs):
    argv = [*command(inputs, "--cache", "together", "--shard_pairs", "700"), "--pairs", "6000"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ours = ["--nproc-per-node", "2", "-m", "sparsify_crosscoder", "harvest"]
    process = spawn(argv, *torchrun, *ours)
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    main(["harvest", *(arg.replace("together", "alone") for arg in argv)])
    files = [
        {
            str(file.relative_to(folder)): file.read_bytes()
            for file in Path(folder).rglob("*")
            if file.is_file()
        }
        for folder in ("together", "alone")
    ]
    assert sum(name.startswith("shard") for name in files[0]) > 5
    assert files[0] == files[1]


@pytest.mark.slow
def test_machines_without_a_common_disk_harvest_halves_that_merge(inputs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = command(inputs, "--cache", "store", "--shard_pairs", "700", "--pairs", "6000")
    machines = []
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
        where = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank", node]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", *where]
        ours = ["-m", "sparsify_crosscoder", "harvest"]
        machines.append(spawn(argv, *torchrun, *ours, cwd=tmp_path / node))
    for process in machines:
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 1 and "Bring the folders to one machine" in out, out
    main(["store", "0/store", "1/store", "--merge_into", "both"])
    main(
        ["harvest", *command(inputs, "--cache", "alone", "--shard_pairs", "700"), "--pairs", "6000"]
    )
    both, alone = (
        {file.name: file.read_bytes() for file in Path(folder).glob("shard_*")}
        for folder in ("both", "alone")
    )
    assert len(both) > 5 and both == alone


def test_a_store_says_what_it_holds_and_shows_pairs_as_text(inputs, capsys):
    main(["harvest", *command(inputs, "--cache", "store", "--pairs", "500")])
    capsys.readouterr()
    main(["store", "store", "--verify", "--show", "0", "7", "--json", "held.json"])
    held = json.loads(Path("held.json").read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    assert f"store: {held['pairs']:,} pairs of" in shown and "all as they were written" in shown
    assert "A  " + str(inputs / "llama") in shown
    for pair in held["shown"]:
        assert list(pair["contexts"]) == ["A llama", "B gpt2"]
        for name, context in pair["contexts"].items():
            assert context.count("«") == 1 and f"  {name}: {context}" in shown
    more = ["--text_column", "text", "--shuffle_seed", "3"]
    main(["harvest", *command(inputs, "--cache", "second", "--pairs", "400", *more)])
    main(["store", "store", "second", "--merge_into", "both", "--json", "both.json"])
    both = json.loads(Path("both.json").read_text(encoding="utf-8"))
    parts = [ActivationStore.open(name) for name in ("store", "second")]
    joined = ActivationStore.open("both")
    assert both["pairs"] == len(joined) and both["harvests"] == [
        part.manifest["parts"][0]["origin"] for part in parts
    ]
    for s in range(2):
        rows = [one.rows(torch.arange(len(one)))[s] for one in [joined, *parts]]
        assert torch.equal(rows[0], torch.cat(rows[1:])), s
    for argv, message in (
        (["store", "second"], "Several stores are for --merge_into"),
        (["store", "second", "--merge_into", "both"], "'both' exists already"),
        (["nothing"], "'nothing' holds no activations"),
        (["store", "--drop_unfinished"], "has no unfinished part"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["store", *argv])
        assert stop.value.code == 1 and message in capsys.readouterr().err


def test_mixing_datasets_and_chat(inputs, tmp_path):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    other = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
    save_tiny_model(tmp_path / "a", "llama", byte_level_tokenizer(chat_template=template))
    save_tiny_model(tmp_path / "b", "gpt2", metaspace_tokenizer(chat_template=other))
    with open(tmp_path / "chat.jsonl", "w", encoding="utf-8") as file:
        for n in range(200):
            messages = [
                {"role": "user", "content": f"What is {n} plus {n}, and why would one ask?"},
                {"role": "assistant", "content": f"It is {2 * n}. People like to ask."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    options = ["--extra_datasets", str(tmp_path / "chat.jsonl"), "--dataset_weights", "0.5", "0.5"]
    argv = command(inputs, *options, model=str(tmp_path / "a"), partners=str(tmp_path / "b"))
    train.main(argv)
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    assert 0.4 < summary["data"]["alignment"]["texts"] / 600 < 1
    main(["top", str(RUN), "--pairs", "500", "--count", "1", "--snippets", "1"])


@pytest.mark.parametrize("cached", [True, False])
def test_top_shows_where_latents_fire_in_both_models_tokens(cached, inputs, capsys):
    train.main(command(inputs, *(["--cache", "store"] if cached else [])))
    capsys.readouterr()
    main(["top", str(RUN), "--pairs", "2000", "--count", "2", "--json", "top.json"])
    shown = capsys.readouterr().out
    reports = json.loads(Path("top.json").read_text(encoding="utf-8"))
    assert 2 <= len(reports) <= 4
    assert {report["block"] for report in reports} == {"exclusive_0", "exclusive_1"}
    for report in reports:
        acts = [snippet["activation"] for snippet in report["snippets"]]
        assert acts == sorted(acts, reverse=True) and acts[0] == report["max_activation"]
        assert all("«" in text for snippet in report["snippets"] for text in snippet["texts"])
        assert f"latent {report['latent']} " in shown
    main(["top", str(RUN), "--pairs", "500", "--latents", "60", "3", "--json", "some.json"])
    assert [r["latent"] for r in json.loads(Path("some.json").read_text(encoding="utf-8"))] == [
        60,
        3,
    ]
    with pytest.raises(SystemExit) as stop:
        main(["top", str(RUN), "--latents", "64"])
    assert stop.value.code == 1 and "latents 0..63, not 64" in capsys.readouterr().err


def bad(**changed):
    return changed


@pytest.mark.parametrize(
    "changed, code, message",
    [
        (bad(arch="dcf"), 2, "Known architectures: crosscoder, dfc, dsf, rdfc"),
        (bad(partners=""), 2, "two models or more"),
        (bad(model="/no/such/model"), 1, "/no/such/model"),
        (bad(hookpoints="layers.1 h.99"), 1, "h.99"),
        (bad(hookpoints="layers.1"), 2, "gives 1 places for 2 models"),
        (bad(exclusive_fractions="0.6 0.6"), 2, "sum to 1.2"),
        (bad(exclusive_fractions="0.1 0.1 0.1"), 1, "3 fractions for 2 sources"),
        (bad(k="65"), 1, "k=65 is larger than the dictionary of 64"),
        (bad(dataset="/no/such/file.jsonl"), 1, "/no/such/file.jsonl"),
        (bad(max_steps="5000"), 1, "but 5,000 are asked"),
        (bad(loss_fn="ce"), 2, "--loss_fn is not available"),
        (bad(k_decay_steps="30"), 1, "does not fit a run of 12 steps"),
        (bad(dataset_weights="0.5 0.5"), 2, "2 weights for 1 datasets"),
        (bad(device="nonsense"), 2, "no device 'nonsense' here"),
        (bad(devices="cpu cuda:99"), 2, "no device 'cuda:99' here"),
        (bad(devices="cpu"), 2, "gives 1 devices for 2 models"),
        (bad(devices="cpu cpu", device_map="auto"), 2, "--devices or --device_map, not both"),
    ],
    ids=str,
)
def test_bad_input_is_refused_with_a_reason_and_nothing_written(
    changed, code, message, inputs, capsys
):
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs, **changed))
    assert stop.value.code == code
    assert message in capsys.readouterr().err
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], ""),
        ([{"text": "  "}, {"text": ""}], "blank"),
        ([{"body": "words"}], "body"),
    ],
)
def test_a_dataset_without_text_is_refused(lines, message, inputs, tmp_path, capsys):
    file = tmp_path / "bad.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs, dataset=str(file)))
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "bad.jsonl" in error and message in error
    assert not Path("checkpoints").exists()


def test_nan_activations_stop_the_run(inputs, tmp_path, capsys):
    shutil.copytree(inputs / "gpt2", tmp_path / "broken")
    from safetensors.torch import save_file

    file = tmp_path / "broken" / "model.safetensors"
    state = load_file(file)
    state["transformer.h.1.mlp.c_proj.bias"][0] = torch.nan
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs, partners=str(tmp_path / "broken")))
    assert stop.value.code == 1
    assert "h.2" in capsys.readouterr().err


def test_a_folder_with_another_run_is_left_as_it_is(inputs, capsys):
    train.main(command(inputs))
    before = {p: p.read_bytes() for p in RUN.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs))
    assert stop.value.code == 1 and "already holds a run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        train.main(command(inputs, "--resume", arch="crosscoder"))
    assert "arch: 'dfc' before, 'crosscoder' now" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in RUN.rglob("*") if p.is_file()}


def test_finetuning_begins_with_the_given_weights(inputs):
    train.main(command(inputs))
    train.main(command(inputs, "--finetune", str(RUN), run_name="tuned", lr="1e-12"))
    before = Crosscoder.load_from_disk(CODER)
    after = Crosscoder.load_from_disk(Path("checkpoints") / "tuned" / CODER.name)
    torch.testing.assert_close(after.W_dec, before.W_dec, atol=1e-6, rtol=0)
    assert torch.equal(after.factors, before.factors)


def spawn(argv: list[str], *prefix: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*(prefix or (sys.executable, "-m", "sparsify")), *argv],
        env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    encoding="utf-8")  # fmt: skip


def test_a_run_stopped_before_its_first_checkpoint_begins_again(inputs):
    train.main(command(inputs))
    whole = load_file(CODER / "sae.safetensors")
    shutil.rmtree(RUN / "checkpoints")
    train.main(command(inputs, "--resume"))
    again = load_file(CODER / "sae.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--cache", "store"],
        ["--hookpoints", "layers.1", "h.2"],
        ["--layers", "1", "2"],
    ],
    ids=lambda options: options[0],
)
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(options, inputs):
    options = [*options, "--save_every", "20", "--buffer_pairs", "2000", "--epochs", "30"]
    changed = {"max_steps": "150", "hookpoints": ""}
    assert spawn(command(inputs, *options, **changed, run_name="whole")).wait() == 0
    argv = command(inputs, *options, **changed)
    killed = spawn(argv)
    while not list(RUN.glob("checkpoints/step_*")) and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (RUN / "summary.json").exists()
    resumed = spawn([*argv, "--resume"])
    out, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, out
    assert "Resuming training at step" in out
    whole, again = (
        load_file(next((Path("checkpoints") / run).glob("layers*/sae.safetensors")))
        for run in ("whole", "run")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_that_fills_the_disk_says_so_and_goes_on(inputs, capsys):
    resource = pytest.importorskip("resource")
    train.main(command(inputs, run_name="whole"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    argv = command(inputs, "--save_every", "5")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(SystemExit) as stop:
            train.main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stop.value.code == 1
    assert "could not be written" in capsys.readouterr().err
    assert not list(RUN.glob("checkpoints/*"))
    train.main([*argv, "--resume"])
    assert all(torch.equal(saved("whole")[name], saved("run")[name]) for name in saved("run"))


OTHERS = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("crosscoder", "dfc", "dsf")]


@pytest.mark.parametrize("arch", ["rdfc", *OTHERS])
def test_a_new_process_reads_the_options_of_a_run(arch, tmp_path):
    """Once a command line was parsed, types that cannot be read from a file can be."""
    options = run_config_class(get_architecture(arch))(
        model="a", dataset="b", partners=["c"], arch=arch
    )
    (tmp_path / "config.json").write_text(json.dumps(options.to_dict()), encoding="utf-8")
    script = (
        "from pathlib import Path; from sparsify_crosscoder.runs.config import load_run_config; "
    )
    script += f"print(load_run_config(Path({str(tmp_path)!r})).arch)"
    done = run_fresh(script, tmp_path / "said")
    assert done.code == 0, done.err
    assert done.out.split()[-1] == arch


@pytest.mark.slow
def test_all_ways_of_calling_give_the_same_weights(inputs):
    bin_folder = Path(sys.executable).parent
    ways = {
        "script": [str(bin_folder / "sparsify")],
        "module": [sys.executable, "-m", "sparsify"],
        "ours": [str(bin_folder / "sparsify-crosscoder"), "train"],
        "torchrun": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "-m",
            "sparsify",
        ],
    }
    runs = {name: spawn(command(inputs, run_name=name), *way) for name, way in ways.items()}
    for name, process in runs.items():
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 0, f"{name}: {out}"
    states = [
        load_file(Path("checkpoints") / name / CODER.name / "sae.safetensors") for name in ways
    ]
    for state in states[1:]:
        assert all(torch.equal(states[0][name], state[name]) for name in state)


@pytest.mark.slow
def test_two_processes_train_together(inputs):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = spawn(command(inputs), *torchrun, "--nproc-per-node", "2", "-m", "sparsify")
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    train.main(command(inputs, run_name="alone"))
    together, alone = (
        json.loads((Path("checkpoints") / run / "summary.json").read_text(encoding="utf-8"))
        for run in ("run", "alone")
    )
    assert together["pairs"] == alone["pairs"]
    assert together["fve"] == pytest.approx(alone["fve"], abs=0.02)


def test_help_shows_both_and_an_architectures_own_options(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--expansion_factor" in shown and "--arch dfc" in shown and "--arch dsf" in shown
    with pytest.raises(SystemExit) as stop:
        train.main(["--arch", "dfc", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--exclusive_fractions" in shown and "Fraction of the latents that is" in shown
    assert "--partners" in shown and "Models to compare with MODEL" in shown


def test_wrong_subcommands_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tpo"])
    assert stop.value.code == 2 and "there are train" in capsys.readouterr().err


def test_without_an_architecture_the_recommended_one_is_trained_and_help_says_so(capsys):
    args = parse_run_config(["m/a", "texts.jsonl", "--partners", "m/b"])
    assert args.arch == "rdfc" and type(args.sae) is RDFCConfig
    assert parse_run_config(["m/a", "t.jsonl", "--partners", "m/b", "--arch", "dfc"]).arch == (
        "dfc"
    )
    with pytest.raises(SystemExit):
        parse_run_config(["--help"])
    assert "(default: rdfc)" in capsys.readouterr().out


def test_the_summary_says_how_many_latents_fired_and_how_many_can_be_judged():
    summary = {
        "arch": "dfc",
        "num_latents": 1_000,
        "fve": 0.8,
        "fve_per_source": [0.8, 0.8],
        "fve_without_top5_per_source": [0.7, 0.7],
        "fve_with_outliers": 0.6,
        "held_out_outliers": 3,
        "held_out_outlier_share": 0.025,
        "mean_l0": 4.0,
        "sources": [{"name": n, "hookpoint": "h.1"} for n in ("m/a", "m/b")],
        "dead_fraction": 0.25,
        "dead_fraction_exclusive": [0.0, None],
        "dead_window": 5_000,
        "exclusive_latents": [102, None],
        "exclusive_judgeable": [7, None],
        "pairs": 9_000,
        "wall_seconds": 1.0,
    }
    printed = RunSummary.from_dict(summary).text(Path("run"))
    assert "alive" not in printed
    assert (
        "100.0% of its 102 exclusive latents fired at least once in the last 5,000 pairs, 7 as"
        in (printed)
    )
    assert "(on 1 in 4,096 pairs)" in printed and printed.count("exclusive latents") == 1
    assert "with the 2.5% of the pairs that are outliers, FVE 0.6000" in printed
    assert "25.0% of all latents did not fire in the last 5,000 pairs" in printed
