"""The changes themselves, and where they are in the list, on small activations."""

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict
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
    sys.modules["nulls_and_plants"].HELD_OUT = 3_000
    yield module
    del sys.modules[spec.name], sys.modules["nulls_and_plants"]
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def model(differences):
    """Sparse concepts as one model sees them, in texts of 40 pairs, and a token for each."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(23_000, 40, generator=generator) < 0.06
    strengths = active * (0.5 + torch.rand(active.shape, generator=generator))
    directions = torch.nn.functional.normalize(torch.randn(40, 24, generator=generator), dim=1)
    tokens = torch.randint(90, (23_000,), generator=generator)
    return differences.Pairs(strengths @ directions + 1, tokens, torch.arange(23_000) // 40)


def args(tmp_path, **options):
    given = {"num_latents": 80, "k": 4, "max_steps": 200, "noise": 0.01, "out": tmp_path}
    return argparse.Namespace(**{**given, **options})


@pytest.mark.parametrize("kind", ["isolated", "token", "rank-one", "shift", "nothing"])
def test_a_change_is_a_direction_with_a_strength_and_else_noise(kind, differences, model):
    control = differences.plant(differences.Change(kind, 0.5, 0.01), model, 0)
    first, second = control.activations
    assert torch.equal(first, model.activations)
    norm = (first - first.mean(0)).norm(dim=1).median()
    along = (second - first) @ control.direction
    left = second - first - along[:, None] * control.direction
    assert float(left.norm(dim=1).median()) == pytest.approx(float(0.01 * norm), rel=0.1)
    strong = along[control.planted] / norm
    if kind == "rank-one":
        assert float(strong.std()) == pytest.approx(0.5, rel=0.05)
    elif kind != "nothing":
        assert (strong - 0.5).abs().max() < 0.02
    expected = {"isolated": 0.01, "token": 0.01, "nothing": 0}.get(kind, 1)
    assert len(strong) / len(first) == pytest.approx(expected, abs=0.004)
    if kind == "token":
        assert len(model.tokens[control.planted].unique()) == 1


def test_an_isolated_difference_is_the_first_finding_and_nothing_is_none(
    differences, model, tmp_path
):
    change = differences.Change("isolated", 0.5, 0.01)
    result = differences.investigate(change, model, "rdfc", 0, args(tmp_path))
    assert (result.rank, result.finding, result.kind) == (1, True, "exclusive")
    assert result.cosine > 0.9
    lines = differences.lines([result])
    assert len(lines) == 3
    assert lines[2].startswith("| isolated | 0.5 | 1.00% | rdfc | 1 exclusive, ")
    nothing = differences.investigate(
        differences.Change("nothing"), model, "rdfc", 0, args(tmp_path)
    )
    assert (nothing.rank, nothing.findings, nothing.place) == (None, 0, "lost")
    file = tmp_path / "differences.jsonl"
    rows = [json.dumps(asdict(one)) + "\n" for one in (result, nothing)]
    file.write_text("".join(rows), encoding="utf-8")
    assert differences.read_results(file) == [result, nothing]
