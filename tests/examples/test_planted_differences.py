"""The changes themselves, and what carries one on small activations."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def differences():
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(
        "planted_differences", EXAMPLES / "planted_differences.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.HELD_OUT = sys.modules["nulls_and_plants"].HELD_OUT = 3_000
    yield module
    del sys.modules[spec.name], sys.modules["nulls_and_plants"]
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def model():
    """Sparse concepts as one model sees them `[N, 24]`, and a token for each pair."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(23_000, 40, generator=generator) < 0.06
    strengths = active * (0.5 + torch.rand(active.shape, generator=generator))
    directions = torch.nn.functional.normalize(torch.randn(40, 24, generator=generator), dim=1)
    return strengths @ directions + 1, torch.randint(90, (23_000,), generator=generator)


def args(tmp_path, **options):
    given = {"num_latents": 80, "k": 4, "max_steps": 200, "noise": 0.01, "out": tmp_path}
    return argparse.Namespace(**{**given, **options})


@pytest.mark.parametrize("kind", ["isolated", "token", "rank-one", "shift", "nothing"])
def test_a_change_is_a_direction_with_a_strength_and_else_noise(kind, differences, model):
    x, tokens = model
    planted = differences.plant(differences.Change(kind, 0.5, 0.01), x, tokens, 0)
    first, second = planted.control.activations
    assert torch.equal(first, x)
    norm = (x - x.mean(0)).norm(dim=1).median()
    left = second - first - planted.strength[:, None] * planted.direction
    assert left.norm(dim=1).median() == pytest.approx(0.01 * norm, rel=0.1)
    strong = planted.strength[planted.strength != 0] / norm
    if kind == "rank-one":
        assert strong.std() == pytest.approx(0.5, rel=1e-3)
    else:
        assert (strong - 0.5).abs().max() < 1e-5 if len(strong) else kind == "nothing"
    expected = {"isolated": 0.01, "token": 0.01, "nothing": 0}.get(kind, 1)
    assert len(strong) / len(x) == pytest.approx(expected, abs=0.004)
    if kind == "token":
        assert len(tokens[planted.strength != 0].unique()) == 1


def test_what_carries_an_isolated_difference_is_an_exclusive_latent(differences, model, tmp_path):
    change = differences.Change("isolated", 0.5, 0.01)
    result = differences.investigate(change, *model, "rdfc", 0, args(tmp_path, noise=0.0))
    assert result["predicted_by"] == "identity"
    found = result["carriers"]["exclusive"]
    assert found["cosine"] > 0.9 and found["correlation"] > 0.9
    lines = differences.table([result]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| isolated | 0.5 | 0.01 | rdfc | 1 of 1 |")


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("share", [0.01, 0.001, 0.0003])
@pytest.mark.parametrize("size", [0.5, 0.125])
def test_isolated_differences_of_near_equal_models_are_found(
    size, share, noise, differences, model, tmp_path
):
    change = differences.Change("isolated", size, share)
    result = differences.investigate(change, *model, "rdfc", 1, args(tmp_path, noise=noise))
    found = result["carriers"]["exclusive"]
    assert found["cosine"] > 0.8 and found["correlation"] > 0.8
