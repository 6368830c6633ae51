"""`sparsify-crosscoder stitch` on a run of tiny random models."""

import json
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import Stitching
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_sources
from sparsify_crosscoder.runs.config import load_run_config
from sparsify_crosscoder.runs.texts import load_windows, split_run_windows
from sparsify_crosscoder.text.texts import load_texts
from tests.support.command_line import command, save_inputs
from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer

TRAINED_ON = 200
ALL = 10**6  # more pairs than there are
FEW = ("--held_out_pairs", "800", "--pairs", "3000", "--steps", "30", "--device", "cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def run(inputs, offline, tmp_path_factory) -> Path:
    """A run on 200 of 300 texts."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("--save_dir", str(folder), "--max_examples", str(TRAINED_ON))
    train.main(command(inputs, *options, max_steps="4", held_out_pairs="500"))
    return folder / "run"


def stitch(run: Path, out: Path, *options: object) -> dict:
    json_file = out.parent / f"{out.name}.json"
    main(
        ["stitch", str(run), "--out", str(out), "--json", str(json_file), *FEW, *map(str, options)]
    )
    return json.loads(json_file.read_text(encoding="utf-8"))


def refused(run: Path, out: Path, *options: object, capsys) -> str:
    """What the command says when it fails, with nothing written."""
    before = sorted(out.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        stitch(run, out, *options)
    assert stop.value.code == 1
    assert sorted(out.rglob("*")) == before
    return capsys.readouterr().err


def write_texts(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def trained_texts(run: Path, inputs: Path) -> list[str]:
    """The texts of the run without those that it held out."""
    args = load_run_config(run)
    sources = load_sources(
        [args.model, *args.partners], placement=Placement("cpu"), hookpoints=args.hookpoints
    )
    windows, _ = load_windows(args, sources)
    rows, held_out = split_run_windows(args, windows)
    assert len(held_out)
    texts = list(load_texts(inputs / "texts.jsonl")["text"])
    return [texts[i] for i in sorted(set(windows.select(rows)["text_id"]))]


def other_texts(count: int) -> list[str]:
    return [
        f"Column {n} holds {n * 13 % 89} small boats, all of which sailed {n * 7 % 31} miles. "
        f"Nobody on board {n * 3 % 97} had {n * 17 % 83} reasons to be afraid of the weather."
        for n in range(count)
    ]


def test_a_run_is_stitched_on_the_texts_that_it_was_not_trained_on(run, tmp_path, capsys):
    out = tmp_path / "stitching"
    found = stitch(run, out)
    printed = capsys.readouterr().out
    report, text = found["report"], found["text"]
    assert report["pairs"] + report["outliers"] == 3_000
    assert 800 <= report["held_out_pairs"] + report["held_out_outliers"] < 1_000
    assert (text["trained_on"], text["partly_trained_on"], text["like_held_out"]) == (0, 0, 0)
    assert text["trained_on_texts"] < TRAINED_ON < TRAINED_ON + text["looked_at"]
    assert len(text["fingerprint"]) == 64
    assert [source["hookpoint"] for source in found["sources"]] == ["layers.1", "h.2"]
    for one in report["directions"]:
        assert one["r2"] > one["r2_closed_form"] - 0.01 > 0
    assert "llama to gpt2" in printed and "gpt2 and back" in printed
    assert f"{report['directions'][0]['r2']:.4f}" in printed
    stitching = Stitching.load(out)
    assert (stitching.report, stitching.text) == (report, text)
    assert stitching.point(torch.zeros(2, 24), 0).shape == (2, 32)
    assert stitching.direction(torch.zeros(32), 1).shape == (24,)


def test_outliers_of_a_stitching_are_those_of_the_runs_training(run, tmp_path):
    (tmp_path / "run").mkdir()
    for path in run.iterdir():
        (tmp_path / "run" / path.name).symlink_to(path)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "config.json").unlink()
    changed = json.dumps({**config, "outlier_multiple": 1.1})
    (tmp_path / "run" / "config.json").write_text(changed, encoding="utf-8")
    found = stitch(tmp_path / "run", tmp_path / "stitching", "--steps", "2")
    assert found["config"]["outlier_multiple"] == 1.1
    assert found["report"]["outliers"] > 300


def test_a_run_from_a_store_is_stitched_on_what_its_harvest_left_out(
    inputs,
    offline,
    tmp_path,
):
    options = ("--save_dir", str(tmp_path), "--pairs", "6000")
    store = str(tmp_path / "store")
    main(["harvest", *command(inputs, *options, "--cache", store)])
    train.main(command(inputs, *options[:2], dataset=store, max_steps="4", held_out_pairs="500"))
    text = stitch(tmp_path / "run", tmp_path / "stitching")["text"]
    assert (text["trained_on"], text["partly_trained_on"]) == (0, 0)
    assert 0 < text["trained_on_texts"] < 300 and text["looked_at"] > 0
    read = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["data"][
        "alignment"
    ]["texts"]
    assert text["trained_on_texts"] < read < 300 <= read + text["looked_at"]


def test_the_same_command_gives_the_same_maps(run, tmp_path):
    for name in ("one", "two"):
        stitch(run, tmp_path / name)
    one, two = (Stitching.load(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one.maps[0].weight, two.maps[0].weight)
    assert one.text["fingerprint"] == two.text["fingerprint"]


def test_text_that_the_run_was_trained_on_is_refused_however_it_is_written(
    run,
    inputs,
    tmp_path,
    capsys,
):
    seen = [text.upper().replace(" ", "\n") for text in trained_texts(run, inputs)]
    file = write_texts(tmp_path / "seen.jsonl", seen)
    said = refused(run, tmp_path / "out", "--dataset", file, "--pairs", ALL, capsys=capsys)
    assert f"Of {len(seen)} texts the run trained on {len(seen)}, and 0 share" in said
    assert "The others give 0 pairs" in said and "Name other text with --dataset" in said


def test_of_another_dataset_only_unseen_texts_are_used_and_the_others_are_counted(
    run,
    inputs,
    tmp_path,
):
    trained = trained_texts(run, inputs)
    quoting = [f"As somebody wrote: {text[:190]} And so on." for text in trained[:3]]
    new = other_texts(150)
    file = write_texts(tmp_path / "mixed.jsonl", [*new, *trained[3:10], *quoting])
    found = stitch(run, tmp_path / "out", "--dataset", file, "--pairs", ALL)
    text = found["text"]
    assert text["looked_at"] == 160
    assert (text["trained_on"], text["partly_trained_on"]) == (7, 3)
    assert text["datasets"] == [str(file)]


def test_texts_like_the_held_out_ones_are_not_fitted(run, tmp_path):
    new = other_texts(150)
    twins = [text.lower() for text in new]
    file = write_texts(tmp_path / "twins.jsonl", [*new, *twins])
    text = stitch(run, tmp_path / "out", "--dataset", file, "--pairs", ALL)["text"]
    assert text["like_held_out"] > 0.5 * text["texts_held_out"]
    assert text["texts_fitted"] + text["texts_held_out"] + text["like_held_out"] == 300


def test_too_little_text_is_refused_with_the_number(run, inputs, tmp_path, capsys):
    file = write_texts(tmp_path / "few.jsonl", other_texts(12))
    said = refused(run, tmp_path / "out", "--dataset", file, capsys=capsys)
    assert "The others give 862 pairs" in said and "320 to fit and 800 held out are needed" in said
    said = refused(run, tmp_path / "out", "--pairs", ALL, "--held_out_pairs", ALL, capsys=capsys)
    assert "1,000,000 held out are needed" in said


def test_a_dataset_that_changed_since_the_run_is_refused(
    run,
    inputs,
    tmp_path,
    capsys,
):
    texts = [
        json.loads(line)
        for line in (inputs / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    changed = write_texts(tmp_path / "texts.jsonl", [one["text"] + " Now." for one in texts])
    copied = tmp_path / "run"
    copied.mkdir()
    (copied / "summary.json").write_text(
        (run / "summary.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(
        json.dumps({**config, "dataset": str(changed)}), encoding="utf-8"
    )
    said = refused(copied, tmp_path / "out", capsys=capsys)
    assert "are not those that" in said and "Restore the dataset" in said
    (copied / "summary.json").unlink()
    assert "has no summary.json" in refused(copied, tmp_path / "out", capsys=capsys)


def test_wrong_use_is_named_before_anything_is_loaded_or_written(run, tmp_path, capsys):
    assert "holds something else" in refused(run, run, capsys=capsys)
    assert "holds no run" in refused(tmp_path, tmp_path / "out", capsys=capsys)
    said = refused(run, tmp_path / "out", "--sources", 0, 2, capsys=capsys)
    assert "sources 0 to 1, not [0, 2]" in said
    assert "two different" in refused(run, tmp_path / "out", "--sources", 1, 1, capsys=capsys)
    assert "positive" in refused(run, tmp_path / "out", "--pairs", 0, capsys=capsys)
    assert "steps" in refused(run, tmp_path / "out", "--steps", -1, capsys=capsys)
    with pytest.raises(SystemExit) as stop:
        main(["stitch", str(run)])
    assert stop.value.code == 2


def test_two_of_three_models_are_stitched_on_what_the_run_held_out(
    inputs,
    offline,
    tmp_path,
):
    save_tiny_model(tmp_path / "third", "qwen3", byte_level_tokenizer(vocab_size=500), width=16)
    train.main(
        command(
            inputs,
            *("--save_dir", str(tmp_path)),
            arch="crosscoder",
            partners=f"{inputs / 'gpt2'} {tmp_path / 'third'}",
            hookpoints="layers.1 h.2 layers.1",
            max_steps="2",
        )
    )
    out = tmp_path / "stitching"
    options = ("--sources", 2, 0, "--held_out_pairs", 200, "--pairs", 500)
    text = stitch(tmp_path / "run", out, *options)["text"]
    assert text["trained_on"] == text["partly_trained_on"] == 0
    assert text["texts_fitted"] + text["texts_held_out"] <= text["looked_at"] < 60
    stitching = Stitching.load(out)
    assert (stitching.width(2), stitching.width(0)) == (16, 24)
    assert [source["hookpoint"] for source in stitching.sources] == ["layers.1", "layers.1"]
