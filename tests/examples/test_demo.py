"""The demo on its two real models: what the README promises of it."""

import json
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import Crosscoder
from tests.support.demo import run_demo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("demo"),  # one worker makes what they share
]


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def test_both_models_are_explained_and_their_exclusive_latents_live(demo):
    summary = summary_of(demo[0] / "demo")
    smollm, gemma = summary["fve_per_source"]
    assert smollm >= 0.80 and gemma >= 0.90
    assert min(summary["fve_without_top5_per_source"]) >= 0.76
    assert max(summary["dead_fraction_exclusive"]) <= 0.5
    assert summary["data"]["alignment"]["pairs"] >= 100_000
    assert (summary["num_latents"], summary["k"]) == (4096, 64)


def test_the_exclusive_decoders_are_exactly_zero_in_the_other_model(demo):
    [dfc] = Crosscoder.load_many(str(demo[0] / "demo"), local=True).values()
    for source, other in ((0, 1), (1, 0)):
        block = dfc.partition.exclusive(source)
        assert len(block) == 205
        assert not dfc.decoder(other)[block.start : block.stop].any()
    assert torch.isfinite(dfc.threshold).all()


def test_it_leaves_its_results_and_shows_snippets_of_both_models(demo):
    folder, printed = demo
    run = folder / "demo"
    for name in ("summary.json", "metrics.jsonl", "config.json", "demo.png"):
        assert (run / name).stat().st_size > 0
    assert "exclusive_0" in printed and "exclusive_1" in printed
    assert "A smollm2-135m-instruct" in printed and "B gemma-3-270m" in printed


def test_its_peak_memory_is_under_6_gb(finished_demo, converted):
    weights = 4 * (135e6 + 270e6)  # both models, in float32
    assert all(weights < done.peak_bytes < 6e9 for _, done in (finished_demo, converted))


@pytest.mark.long
def test_a_standard_crosscoder_explains_as_much(demo):
    folder = demo[0]
    done = run_demo(folder, "--arch", "crosscoder")
    assert done.returncode == 0, done.stderr[-4000:]
    dfc, standard = summary_of(folder / "demo"), summary_of(folder / "demo-crosscoder")
    for a, b in zip(dfc["fve_per_source"], standard["fve_per_source"], strict=True):
        assert abs(a - b) <= 0.02


def test_dsf_says_that_it_needs_equal_widths(demo):
    done = run_demo(demo[0], "--arch", "dsf")
    assert done.returncode != 0 and "equal widths" in done.stderr
