import json
from dataclasses import replace

import pytest
import torch

from sparsify_crosscoder import CrosscoderTrainer
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.evaluation.toy import ToyConfig
from sparsify_crosscoder.evaluation.toy import grid as grids
from sparsify_crosscoder.evaluation.toy import presets as known
from sparsify_crosscoder.evaluation.toy.figures import over_seeds, table
from sparsify_crosscoder.evaluation.toy.grid import Row, read_rows, rows_of, run_grid, run_row

TINY = replace(
    known.SMALL,
    toy=ToyConfig(num_concepts=24, width=16, exclusive_ratio=0.25, mean_active=2.0, decay=0.0),
    sizes=(1.0,),
    num_steps=60,
    pairs_per_step=256,
    lr=3e-3,
    variants=("crosscoder", "rdfc-10%"),
    num_snapshots=4,
    evaluation_pairs=4_096,
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(known.PRESETS, "tiny", TINY)


def test_a_grid_runs_every_variant_size_and_seed_once(tmp_path):
    rows = rows_of(TINY, [0, 1])
    assert [str(row) for row in rows] == [
        "crosscoder@1x-seed0",
        "rdfc-10%@1x-seed0",
        "crosscoder@1x-seed1",
        "rdfc-10%@1x-seed1",
    ]
    results = run_grid(TINY, rows, tmp_path, jobs=2)
    assert [grids.row_of(r) for r in results] == rows
    for result in results:
        assert [s["step"] for s in result["snapshots"]] == [15, 30, 45, 60]
        assert result["snapshots"][-1]["pairs"] <= 60 * 256
        assert sum(result["verdicts"].values()) >= result["scores_filtered"]["called_exclusive"]
        assert result["num_latents"] == 24
    # Some learning took place, and the residual DFC learns what the standard one does not.
    assert all(r["fve"] > 0.2 for r in results)
    again = run_grid(TINY, rows, tmp_path)
    assert again == results and len(read_rows(tmp_path)) == 4


@pytest.mark.slow
def test_a_row_is_the_same_whatever_ran_before_it(tmp_path):
    row = Row("rdfc-10%", 1.0, 3)
    first, second = (run_row(TINY, row, tmp_path / name) for name in "ab")
    for name in ("scores", "scores_filtered", "fve", "snapshots", "verdicts"):
        assert first[name] == second[name]


def test_a_stopped_grid_goes_on_where_it_was(tmp_path):
    rows = rows_of(TINY, [0])
    done = run_grid(TINY, rows[:1], tmp_path)
    with (tmp_path / grids.ROWS).open("a", encoding="utf-8") as file:
        file.write('{"variant": "rdfc-10%", "size"')  # killed while it wrote
    results = run_grid(TINY, rows, tmp_path)
    assert results[0] == done[0]
    assert [
        json.loads(line)["variant"] for line in (tmp_path / grids.ROWS).open(encoding="utf-8")
    ] == [
        "crosscoder",
        "rdfc-10%",
    ]


def test_a_row_that_was_killed_continues_from_its_checkpoint(tmp_path, monkeypatch):
    row = Row("crosscoder", 1.0, 0)
    whole = run_row(TINY, row, tmp_path / "whole")
    trainer = CrosscoderTrainer
    step = trainer._optimizer_step

    def killed_at_40(self):
        if self.global_step == 40:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_optimizer_step", killed_at_40)
        with pytest.raises(KeyboardInterrupt):
            run_row(TINY, row, tmp_path / "killed")
    resumed = run_row(TINY, row, tmp_path / "killed")
    for name in ("scores", "snapshots", "fve"):
        assert resumed[name] == whole[name]


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    rows = rows_of(TINY, [0])
    run_grid(TINY, rows[:1], tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        run_grid(replace(TINY, lr=1e-2), rows, tmp_path)
    run_grid(replace(TINY, sizes=(0.5,)), rows[:1], tmp_path)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"\['nonsense'\]"):
        rows_of(TINY, [0], variants=["nonsense"])


@pytest.mark.parametrize("size", [0.0, -1.0, 0.04])
def test_sizes_without_enough_latents_are_refused(size):
    with pytest.raises(ValueError, match="choose a larger one"):
        rows_of(TINY, [0], sizes=[size])


def test_means_and_standard_errors_over_seeds():
    assert over_seeds([0.2, 0.4, 0.6]) == (pytest.approx(0.4), pytest.approx(0.2 / 3**0.5))
    assert over_seeds([0.3]) == (0.3, 0.0)


def test_the_command_prints_a_table_draws_and_writes_json(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["toy", "--preset", "tiny", "--out", str(tmp_path / "out"), "--seeds", "1"]
    main([*arguments, "--variants", "crosscoder", "--jobs", "1", "--json", str(tmp_path / "j")])
    results = json.loads((tmp_path / "j").read_text(encoding="utf-8"))
    assert table(results) in capsys.readouterr().out
    assert results[0]["variant"] == "crosscoder"
    for name in ("recall.png", "learning.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [["--preset", "huge"], ["--seeds", "0"], ["--variants", "x"]])
def test_wrong_use_ends_with_2(wrong, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["toy", "--out", str(tmp_path), *wrong])
    assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_settings_ends_with_1(tiny, tmp_path, capsys):
    (tmp_path / grids.SETTINGS).write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["toy", "--preset", "tiny", "--out", str(tmp_path), "--seeds", "1"])
    assert stopped.value.code == 1
    assert "other settings" in capsys.readouterr().err


def test_presets_are_those_of_the_paper():
    paper = known.PRESETS["paper"]
    assert (paper.toy.num_concepts, paper.toy.width, paper.k) == (2_048, 256, 20)
    assert paper.num_steps * paper.pairs_per_step == 800_000_000
    hard = known.PRESETS["small-hard"]
    assert (hard.toy.amplitude_jitter, hard.toy.drop, hard.toy.nonlinearity) == (0.5, 0.1, 0)
    assert torch.tensor([len(known.PRESETS)]) == 9
