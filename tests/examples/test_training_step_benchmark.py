"""The benchmarks of the training step: what they compare is the same, and what they write."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder.crosscoders import preactivations

ROOT = Path(__file__).parents[2]
step_estimates = importlib.import_module("step_estimates")
step_inputs = importlib.import_module("step_inputs")
step_measurements = importlib.import_module("step_measurements")
step_settings = importlib.import_module("step_settings")
step_variants = importlib.import_module("step_variants")
training_step = importlib.import_module("training_step")
loss_curves = importlib.import_module("loss_curves")

SMALL = step_settings.Setting(widths=(7, 5), num_latents=40, batch=30, k=3)


def pairs(setting, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(setting.batch, width) for width in setting.widths]
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def crosscoder_of(setting):
    made = step_inputs.make_crosscoder(setting, pairs(setting, 1), dtype=torch.float64)
    made.encoder.bias.data.normal_(std=0.1)
    made.b_dec.data.normal_(std=0.1)
    return made


def gradients(step):
    """Gradients of W_enc, b_enc, W_dec and b_dec, of all sources side by side."""
    if not isinstance(step, step_variants.Ours):
        return [parameter.grad for parameter in step.parameters]
    crosscoder = step.crosscoder
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(parameter.grad)
    sources = range(len(crosscoder.d_sources))
    encoder = torch.cat([crosscoder.encoder_weight(s) for s in sources], 1)
    return [encoder, crosscoder.encoder.bias, crosscoder.W_dec, crosscoder.b_dec]


def losses_and_gradients(name, setting, dead):
    step = step_variants.VARIANTS[name](crosscoder_of(setting), auxk=dead is not None)
    losses = step.losses(step.normalize(pairs(setting)), dead)
    (losses.loss + 0.5 * losses.auxk).backward()
    return losses, gradients(step)


@pytest.mark.parametrize("arch", ["crosscoder", "dfc"])
@pytest.mark.parametrize("dead", ["none", "some", "all"])
@pytest.mark.parametrize("name", ["index_add", "ours fp32", "ours bf16"])
def test_every_variant_has_the_loss_and_the_gradients_of_the_dense_one(name, dead, arch):
    setting = replace(SMALL, arch=arch)
    torch.manual_seed(2)
    share = {"none": 0.0, "some": 0.5, "all": 1.0}[dead]
    dead_mask = torch.rand(setting.num_latents) < share if share else None
    expected, expected_gradients = losses_and_gradients("dense", setting, dead_mask)
    found, found_gradients = losses_and_gradients(name, setting, dead_mask)
    assert expected.auxk > 0 or not share
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.auxk, expected.auxk, rtol=1e-12, atol=0)
    assert torch.equal(found.fired, expected.fired)
    for gradient, wanted in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
        assert wanted.abs().max() > 0


@pytest.mark.parametrize("name", ["index_add", "ours fp32", "ours bf16"])
def test_every_variant_takes_the_steps_of_the_dense_one(name):
    setting = replace(SMALL, auxk=True)
    curves = []
    for variant in ("dense", name):
        step = step_variants.make_step(variant, crosscoder_of(setting), setting)
        curves.append([step.step(pairs(setting, seed)).item() for seed in range(5)])
        assert (step.since_fired == 0).any() and (step.since_fired > 0).any()
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)
    assert len(set(curves[0])) == 5


def test_sparsify_starts_from_the_same_weights():
    crosscoder = crosscoder_of(SMALL)
    encoder = torch.cat([crosscoder.encoder_weight(s) for s in range(2)], 1)
    step = step_variants.Sparsify(crosscoder, auxk=False)
    assert torch.equal(step.coder.encoder.weight, encoder)
    assert torch.equal(step.coder.W_dec, crosscoder.W_dec)
    before = step.step(pairs(SMALL))
    assert step.step(pairs(SMALL)) < before
    assert not torch.equal(step.coder.encoder.weight, encoder)


def test_stages_are_counted_once_and_auxk_as_a_whole():
    class Clock:
        def __init__(self):
            self.now = 0

        def mark(self):
            self.now += 1
            return self.now

        def milliseconds(self, start, end):
            return end - start

    stages = step_measurements.Stages(Clock())
    with stages("loss"), stages("AuxK"), stages("decode"):
        pass
    assert stages.milliseconds() == {"loss": 2, "AuxK": 1}


def test_our_step_reports_its_inner_stages_and_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(preactivations, "_CHEAP_PRODUCT", 0)  # so that its blocks are screened
    setting = replace(SMALL, auxk=True)
    step = step_variants.make_step("ours bf16", crosscoder_of(setting), setting)
    methods = [getattr(owner, name) for owner, name in step_variants.INNER_STAGES]
    stages = step_measurements.time_stages(step, [pairs(setting)], step_measurements.Clock())
    outer = {"count dead", "normalise", "loss", "backward", "clip", "optimiser"}
    inner = {"encoder", "select", "re-score", "decode", "AuxK"}
    assert outer | inner <= set(stages)
    assert methods == [getattr(owner, name) for owner, name in step_variants.INNER_STAGES]


def test_synthetic_pairs_depend_on_the_seed_and_are_uneven():
    first, again, other = (step_inputs.synthetic_pairs((40, 60), 500, seed) for seed in (0, 0, 1))
    assert [tuple(x.shape) for x in first] == [(500, 40), (500, 60)]
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    spread = first[1].std(0).sort().values
    assert spread[-3] > 5 * spread[-4]


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("7+5/40/30/3", SMALL),
        ("7+5/40/30/3/dfc/auxk", replace(SMALL, arch="dfc", auxk=True)),
    ],
)
def test_a_size_can_be_written_out(text, setting):
    assert step_settings.Setting.parse(text) == setting


@pytest.mark.parametrize("text", ["narow", "7+5/40/30", "7+5/40/30/3/sparse", "7+x/40/30/3"])
def test_a_size_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match=r"neither one of auxk_off, .* nor of the form"):
        step_settings.Setting.parse(text)


def test_the_expected_memory_adds_up():
    setting = step_settings.Setting(widths=(3, 5), num_latents=10, batch=4, k=2, auxk=True)
    # 80 weights in each matrix; k_aux is 2, and 5 latents are dead.
    assert step_estimates.expected_bytes(setting, torch.bfloat16) == {
        "parameters": 4 * (80 + 80 + 10 + 8),
        "gradients": 712,
        "adam": 1_424,
        "inputs": 2 * 4 * 8 * 4,
        "screening": 4 * 10 * 2,
        "screening_weights": 80 * 2,
        "dead": 4 * 5 * (2 + 3),
        "entries": 64 * 4 * (2 + 2),
        "errors": 4 * 4 * 8 * 4,
        "heap": 32_000_000,
        "peak": (712 + 1_424 + 256 + 1_024) + (712 + 512) + 32_000_000,
    }


def test_the_table_of_expected_memory_is_that_of_the_formula():
    text = (ROOT / "examples" / "benchmarks" / "memory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (float32|bfloat16) \|(.*)\|$", text, re.M)
    assert len(rows) >= 8
    for size, screened, cells in rows:
        setting = step_settings.Setting.parse(size)
        dtype = torch.bfloat16 if screened == "bfloat16" else None
        expected = step_estimates.expected_bytes(setting, dtype)
        shown = [expected[part] for part in ("parameters", "gradients", "adam", "peak")]
        assert [cell.strip() for cell in cells.split("|")] == [f"{n / 1e6:,.0f}" for n in shown]


def test_claims_are_judged_where_their_settings_were_measured():
    def timed(ms, peak):
        return {"median_ms": ms, "peak_bytes": peak}

    variants = {
        "dense": timed(900.0, 1_000),
        "ours fp32": timed(200.0, 900),
        "ours bf16": timed(150.0, 1_100),
        "sparsify": timed(450.0, 1_000),
    }
    report = {"settings": {str(step_settings.AUXK_OFF): {"variants": variants}}}
    rows = {row["claim"]: row for row in training_step.judge(report)}
    assert rows["fp32 against dense"]["found"] == 4.5 and rows["fp32 against dense"]["holds"]
    assert rows["bf16 against dense"]["found"] == 6.0 and not rows["bf16 against dense"]["holds"]
    assert rows["bf16 against sparsify"]["found"] == 3.0
    assert rows["dense's peak memory against fp32"]["holds"]
    assert not rows["dense's peak memory against bf16"]["holds"]
    assert "bf16 against dense, narrow" not in rows


def test_a_gap_between_curves_is_measured_against_that_between_seeds():
    dense = [{"losses": [value] * 60, "fve": 1 - value} for value in (0.5, 0.6, 0.54)]
    near = [{"losses": [run["losses"][0] + 0.02] * 60, "fve": run["fve"]} for run in dense]
    runs = {"dense": dense, "ours fp32": near, "ours bf16": dense}
    found = loss_curves.compare(runs)
    assert found["ours fp32"]["largest_gap_between_seeds"] == pytest.approx(0.1)
    assert found["ours fp32"]["share"] == pytest.approx(0.2)
    assert found["ours fp32"]["largest_fve_gap"] == 0
    assert found["ours bf16"]["share"] == 0


def run_benchmark(script, *arguments):
    command = [sys.executable, f"examples/benchmarks/{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_benchmark_writes_every_figure(tmp_path):
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    shown = run_benchmark(
        "training_step.py", "--quick", "--json", str(figures), "--plot", str(picture)
    )
    report = json.loads(figures.read_text(encoding="utf-8"))
    assert report["quick"] and report["claims"] == []
    assert set(report["tables"]) == set(step_settings.QUICK_SIZES)
    settings = {name for names in report["tables"].values() for name in names}
    assert settings == set(report["settings"])
    for name, result in report["settings"].items():
        assert name in shown or name in report["tables"]["latents"]
        assert set(result["variants"]) == set(step_variants.VARIANTS)
        for variant in result["variants"].values():
            assert len(variant["ms"]) == training_step.QUICK_STEPS
            assert variant["median_ms"] > 0
            assert variant["faster_than_dense"] > 0
    (quick,) = report["tables"]["auxk_off"]
    result = report["settings"][quick]
    for name in step_variants.OURS:
        assert {"encoder", "select", "decode", "backward"} <= set(result["stages"][name])
        measured = result["variants"][name]["peak_bytes"]
        assert 0.5 < result["expected_bytes"][name]["peak"] / measured < 2
    assert result["ceilings"]["gemm_fp32_flops"] > 1e9
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_loss_curves_are_those_of_the_dense_reference(tmp_path):
    figures = tmp_path / "figures.json"
    shown = run_benchmark("loss_curves.py", "--quick", "--json", str(figures))
    report = json.loads(figures.read_text(encoding="utf-8"))
    assert {len(run["losses"]) for runs in report["runs"].values() for run in runs} == {60}
    for run in report["runs"]["dense"]:
        assert run["losses"][-1] < run["losses"][0]
    for comparison in report["comparison"].values():
        assert comparison["share"] < 1
    assert "held-out FVE" in shown
