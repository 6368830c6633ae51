"""The controls themselves, and one run of each kind on small activations."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def controls():
    spec = importlib.util.spec_from_file_location(
        "nulls_and_plants", ROOT / "examples" / "nulls_and_plants.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.HELD_OUT = 500
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def pairs():
    """Sparse concepts seen by two sources of different width."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(30_000, 40, generator=generator) < 0.06
    strengths = active * (0.5 + torch.rand(active.shape, generator=generator))
    sources = []
    for width in (20, 24):
        directions = torch.nn.functional.normalize(
            torch.randn(40, width, generator=generator), dim=1
        )
        noise = 0.05 * torch.randn(len(active), width, generator=generator)
        sources.append(strengths @ directions + noise + 1)
    return sources


@pytest.fixture
def args():
    return argparse.Namespace(num_latents=80, k=4, max_steps=250, pairs=30_000)


def test_a_model_against_itself_differs_in_nothing_but_the_basis(controls, pairs):
    x = pairs[0]
    same = controls.null("itself", x).activations
    assert torch.equal(*same)
    _, rotated = controls.null("rotated", x).activations
    torch.testing.assert_close(rotated.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(rotated @ rotated[:50].T, x @ x[:50].T, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(rotated, x, atol=0.1)
    _, noisy = controls.null("noisy", x).activations
    error = (noisy - rotated).std() / (rotated - rotated.mean(0)).std()
    assert error.item() == pytest.approx(0.05, rel=0.05)


def test_a_plant_is_one_direction_on_some_pairs_of_the_first_source(controls, pairs):
    control = controls.plant(pairs, 0.5, seed=3)
    difference = control.activations[0] - pairs[0]
    assert torch.equal(control.activations[1], pairs[1])
    assert not difference[~control.planted].any()
    assert control.planted.float().mean().item() == pytest.approx(0.01, abs=0.004)
    size = 0.5 * (pairs[0] - pairs[0].mean(0)).norm(dim=1).median()
    expected = size * control.direction
    torch.testing.assert_close(
        difference[control.planted],
        expected.expand(int(control.planted.sum()), -1),
        atol=1e-5,
        rtol=1e-4,
    )
    assert not torch.equal(controls.plant(pairs, 0.5, seed=4).direction, control.direction)


def test_a_plant_is_found_and_a_null_is_empty(controls, pairs, args, tmp_path):
    planted = controls.run_control(
        controls.plant(pairs, 1.5, seed=1), "rdfc", args, tmp_path / "plant"
    )
    found = planted["plant"]
    assert found["found"] and found["cosine"] > 0.9 and found["clusters_like_it"] == 1
    assert found["rank"] == 1 and found["recall"] > 0.9
    assert found["precision"] > 0.9 and found["echoes"] == 0
    assert planted["clusters"] == [1, 0]
    nothing = controls.run_control(controls.null("rotated", pairs[0]), "rdfc", args, tmp_path / "n")
    assert nothing["clusters"] == [0, 0]
    lines = controls.control_table([planted, nothing]).splitlines()
    assert lines[2].startswith("| plant-1.5-1 | rdfc |") and len(lines) == 4


@pytest.mark.slow
def test_the_models_as_they_are_are_compared_over_seeds(controls, pairs, args, tmp_path):
    planted = controls.plant(pairs, 1.5, seed=1)
    seeds = [controls.Control(f"pair-{s}", planted.activations, seed=s) for s in (0, 2)]
    results = [
        controls.run_control(pair, "rdfc", args, tmp_path / f"{pair.name}-rdfc") for pair in seeds
    ]
    results.append(controls.recurring(seeds, "rdfc", args, tmp_path))
    assert results[-1]["recurring"] == [1, 0]
    (line,) = controls.pair_table(results).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "rdfc" and cells[-3:] == ["1, 0", "1, 0", ""]
    assert all(0.3 < float(fve) < 1 for fve in cells[1].split(","))
    assert controls.control_table(results).count("\n") == 1
