import importlib.util
import json
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "examples" / "demo_plot.py"
_SPEC = importlib.util.spec_from_file_location("demo_plot", _PATH)
assert _SPEC and _SPEC.loader
demo_plot = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo_plot)

image = pytest.importorskip("matplotlib.image")


def _run_folder(folder, *, num_sources=2, exclusive=True):
    sources = range(num_sources)
    lines = [
        {
            "step": step,
            "pairs": 256 * step,
            "fve": 0.01 * step,
            "fve_per_source": [0.01 * step - 0.5 + 0.1 * s for s in sources],
            "dead_fraction": 0.002 * step,
            "dead_fraction_exclusive": [0.004 * step for _ in sources] if exclusive else None,
            "k": 32,
            "l0": 32.0,
            "lr": 1e-3,
            "pairs_per_second": 900.0,
        }
        for step in range(1, 101)
    ]
    shared = {"shared": 90}
    blocks = {**{f"exclusive_{s}": 5 for s in sources}, **shared}
    summary = {
        "arch": "dfc" if exclusive else "crosscoder",
        "fve": 0.55,
        "fve_per_source": [0.5] * num_sources,
        "fve_without_top5_per_source": [0.45] * num_sources,
        "dead_fraction": 0.2,
        "dead_fraction_exclusive": [0.4] * num_sources if exclusive else None,
        "mean_l0": 31.5,
        "pairs": 25600,
        "wall_seconds": 3723.4,
        "num_latents": 100,
        "partition": blocks if exclusive else shared,
        "sources": [
            {"name": f"org/model-{s}", "hookpoint": "layers.3", "width": 64} for s in sources
        ],
        "relative_decoder_norm": {
            "edges": [i / 10 for i in range(11)],
            "counts": [5, 0, 0, 10, 40, 30, 10, 0, 0, 5],
        },
    }
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("num_sources", [2, 3])
def test_a_run_becomes_one_wide_picture_with_something_in_each_panel(
    tmp_path, num_sources, exclusive
):
    run = _run_folder(tmp_path / "run", num_sources=num_sources, exclusive=exclusive)
    demo_plot.plot_run(run, tmp_path / "plots" / "run.png")
    pixels = image.imread(tmp_path / "plots" / "run.png")[..., :3]
    height, width, _ = pixels.shape
    assert width > 2 * height > 1000
    for panel in range(3):
        part = pixels[:, panel * width // 3 : (panel + 1) * width // 3]
        assert (part < 0.9).any()


def test_the_first_models_own_latents_are_drawn_at_one_and_in_its_colour(tmp_path):
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    run = _run_folder(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    axes = Figure().subplots()
    demo_plot._plot_relative_decoder_norm(axes, summary, ["first", "second"])
    last = max(axes.patches, key=lambda bar: bar.get_window_extent().x0)
    assert last.get_window_extent().x1 == pytest.approx(axes.transData.transform((1, 1))[0])
    assert last.get_facecolor()[:3] == to_rgb(demo_plot.SOURCE_COLOURS[0])
    assert {text.get_text() for text in axes.texts} == {
        "second\nonly: 5",
        "both\n90",
        "first\nonly: 5",
    }


def test_missing_values_do_not_stop_the_plot(tmp_path):
    run = _run_folder(tmp_path / "run")
    rows = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows[0].update(fve_per_source=[None, float("nan")], dead_fraction_exclusive=None)
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    demo_plot.plot_run(run, tmp_path / "run.png")
    assert image.imread(tmp_path / "run.png").size


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_a_folder_that_is_no_finished_run_is_refused_by_name_of_the_missing_file(tmp_path, name):
    run = _run_folder(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        demo_plot.plot_run(run, tmp_path / "run.png")
    assert not (tmp_path / "run.png").exists()


def test_metrics_that_are_empty_or_cut_off_are_refused_with_the_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="empty"):
        demo_plot.read_metrics(path)
    path.write_text('{"step": 1}\n{"step": ', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        demo_plot.read_metrics(path)
