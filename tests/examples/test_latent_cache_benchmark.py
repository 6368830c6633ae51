"""The benchmark of the latent cache: what both ways are given and write, and what is made of it."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
benchmark = importlib.import_module("latent_cache")

SMALL = benchmark.Size(40, rows=6, batch_rows=2, k=5, ctx_len=7)
ENCODED = replace(SMALL, widths=(12, 9))


def cached(size, folder):
    """What every way writes of one size; stages of each way and the folders of their files."""
    encode = (benchmark.random_crosscoder if size.widths else benchmark.synthetic_codes)(size)
    stages = {
        way: benchmark.write_anew(way, size, encode, folder / way) for way in size.rows_at_once
    }
    return stages, {way: folder / way / benchmark.HOOKPOINT for way in stages}


def test_every_token_has_k_latents_of_all():
    size = benchmark.Size(1_000, rows=4, k=30)
    code = benchmark.synthetic_codes(size)(slice(100, 700))
    assert code.shape == (600, 1_000)
    dense = code.to_dense()
    assert (dense > 0).sum(1).tolist() == [30] * 600
    assert code.indices.min() == 0 and code.indices.max() == 999
    assert torch.equal(code.rows.unique(), torch.arange(600))


def test_parts_of_a_code_are_the_code():
    encode = benchmark.synthetic_codes(SMALL)
    parts = [encode(slice(start, start + 14)).to_dense() for start in range(0, 42, 14)]
    assert torch.equal(torch.cat(parts), encode(slice(0, 42)).to_dense())
    other = benchmark.synthetic_codes(SMALL, seed=1)(slice(0, 42)).to_dense()
    assert not torch.equal(torch.cat(parts), other)


def test_the_crosscoder_has_a_threshold_that_leaves_k_latents_on_average():
    size = benchmark.Size(500, rows=8, k=20, ctx_len=64, widths=(24, 32))
    code = benchmark.random_crosscoder(size)(slice(0, 512))
    assert code.counts.float().mean() == pytest.approx(20, rel=0.2)
    assert code.counts.unique().numel() > 1  # it is no k of each token


@pytest.mark.parametrize("size", [SMALL, ENCODED], ids=["without encoding", "with encoding"])
def test_both_write_the_same_files_and_every_activation(size, tmp_path):
    stages, folders = cached(size, tmp_path)
    others = ["ours"] if size.widths else ["delphi, dense given", "ours", "ours, larger parts"]
    assert list(folders) == ["delphi", *others]
    written = sum(len(load_file(p)["activations"]) for p in folders["delphi"].glob("*.safetensors"))
    assert written > 100 and (size.widths or written == 5 * 42)
    for way in others:
        assert benchmark.differences(folders["delphi"], folders[way]) == []
    assert set(stages["delphi"]) == {"encode", "dense", "add", "firing counts", "save"}
    if not size.widths:
        given = stages["delphi, dense given"]
        assert {*given, "firing counts"} == set(stages["delphi"])
    assert set(stages["ours"]) == {"encode", "add", "finish"}


@pytest.mark.parametrize("key", ["activations", "locations", "tokens", "dtype", "missing"])
def test_a_change_in_one_file_is_found(key, tmp_path):
    _, folders = cached(SMALL, tmp_path)
    changed = sorted(folders["ours"].glob("*.safetensors"))[1]
    data = load_file(changed)
    if key == "missing":
        changed.unlink()
    elif key == "dtype":
        save_file(data | {"activations": data["activations"].astype("float32")}, changed)
    else:
        data[key].flat[3] += 1
        save_file(data, changed)
    (found,) = benchmark.differences(folders["delphi"], folders["ours"])
    named = {"missing": "files:", "dtype": "activations of"}.get(key, f"{key} of")
    assert found.startswith(named)
    assert benchmark.differences(folders["delphi"], folders["ours, larger parts"]) == []


def test_two_empty_folders_are_not_equal(tmp_path):
    assert benchmark.differences(tmp_path, tmp_path)


PEAKS = {"delphi": 1_000, "delphi, dense given": 800, "ours": 40}


def peaks_of(size):
    return {way: peak for way, peak in PEAKS.items() if way in size.rows_at_once}


def turn(scale):
    delphi = {"encode": 1.0, "dense": 2.0, "add": 3.0, "save": 5.0}
    ways = {
        "delphi": {**delphi, "firing counts": 4.0},
        "delphi, dense given": delphi,
        "ours": {"encode": 1.0, "add": 0.1, "finish": 0.3},
    }
    return {way: {s: scale * t for s, t in stages.items()} for way, stages in ways.items()}


@pytest.mark.parametrize(("size", "seconds"), [(SMALL, (14.0, 8.0, 0.4)), (ENCODED, (15.0, 1.4))])
def test_ratios_are_those_of_the_medians_of_what_counts(size, seconds):
    turns = [turn(scale) for scale in (1.0, 50.0, 0.5)]
    rows = benchmark.rows_of(size, turns, peaks_of(size))
    assert [row["way"] for row in rows] == list(peaks_of(size))
    for row, median in zip(rows, seconds, strict=True):
        assert row["seconds"] == pytest.approx([median, 50 * median, median / 2])
        assert row["tokens_per_second"] == pytest.approx(42 / median)
        assert row["times_as_fast"] == pytest.approx(seconds[0] / median)
        assert sum(row["stages"].values()) == pytest.approx(median)
    expected = [1_000 / peak for peak in peaks_of(size).values()]
    assert [row["times_less_memory"] for row in rows] == expected
    assert "dense" in rows[0]["stages"] and "dense" not in rows[1]["stages"]


def made_up_report():
    largest = replace(SMALL, num_latents=benchmark.LATENTS[-1])
    rows = []
    for size in (SMALL, largest, replace(largest, widths=(12, 9))):
        rows += benchmark.rows_of(size, [turn(1.0)], peaks_of(size))
    return {
        "processor": "a processor",
        "versions": {"torch": "2", "eai-delphi": "0"},
        "repeats": 1,
        "rows": rows,
        "differences": [],
        "claims": benchmark.judge(rows),
    }


def test_claims_are_judged_by_the_largest_size_without_encoding():
    report = made_up_report()
    found = {claim["claim"]: (claim["found"], claim["holds"]) for claim in report["claims"]}
    assert found == {
        "times_as_fast": (pytest.approx(35), False),
        "times_less_memory": (25, True),
    }


def test_the_report_shows_every_row_and_what_differs():
    report = made_up_report()
    shown = benchmark.show(report)
    assert shown.count("| ours ") == 3 + 1 and shown.count("| delphi, dense given ") == 2
    assert "FAIL" in shown and "pass" in shown and "none, in any size and way" in shown
    assert "35.00x" in shown and "10.71x" in shown and "25.0x" in shown
    assert "tokens of 0_7" in benchmark.show(report | {"differences": ["tokens of 0_7"]})


@pytest.mark.parametrize("wrong", [True, False])
def test_files_that_differ_or_a_claim_that_fails_end_the_script_with_1(
    wrong, tmp_path, monkeypatch, capsys
):
    report = made_up_report() | {"claims": [], "differences": ["tokens"] if wrong else []}
    monkeypatch.setattr(benchmark, "run", lambda *_: dict(report))
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["latent_cache.py", "--quick", "--json", str(figures)])
    assert benchmark.main() == wrong
    assert json.loads(figures.read_text(encoding="utf-8"))["claims"] == []
    monkeypatch.setattr(sys, "argv", ["latent_cache.py"])
    assert benchmark.main() == 1  # a claim fails
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quick_benchmark_finds_equal_files_and_measures_every_way(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "examples/benchmarks/latent_cache.py", "--quick", "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(figures.read_text(encoding="utf-8"))
    assert report["differences"] == [] and report["claims"] == []
    sizes = benchmark.QUICK_SIZES
    assert len(report["rows"]) == sum(len(size.rows_at_once) for size in sizes)
    for row in report["rows"]:
        assert row["tokens_per_second"] > 0 and row["extra_bytes"] > 1e6
        if row["way"] == "delphi":  # it holds a batch's dense tensor and its absolute values
            dense = 4 * row["batch_rows"] * row["ctx_len"] * row["num_latents"]
            assert row["extra_bytes"] > 1.5 * dense
    assert "With encoding" in done.stdout
