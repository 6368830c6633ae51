"""What is planted into one model is found, does its effect there, and not in the other model."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.models import tiny_model
from tests.support.tokenizers import SENTENCES, byte_level_tokenizer

ROOT = Path(__file__).parents[2]
planted_feature = importlib.import_module("planted_feature")
nulls_and_plants = importlib.import_module("nulls_and_plants")

HOOKPOINTS = ("layers.0", "h.0")
TINY = 0.7  # any two directions of 32 dimensions have something in common


def check(result: dict, by_chance: float) -> None:
    """What must hold, where unrelated effects correlate less than `by_chance`."""
    assert result["rank"] == 1
    assert result["cosine_with_planted"] > 0.95
    own, other = result["in_its_own_model"], result["in_the_other_model"]
    (found,) = [one for name, one in own.items() if "ranked first" in name]
    assert found["correlation"] > 0.95
    assert 0.8 < found["size"] < 1.25
    controls = [one["correlation"] for name, one in own.items() if name.startswith("control")]
    assert len(controls) >= planted_feature.CONTROLS
    assert max(map(abs, controls)) < by_chance
    for one in other.values():
        assert abs(one["correlation"]) < by_chance


def activations(model, hookpoint: str, ids: torch.Tensor) -> torch.Tensor:
    """The output of a hookpoint at all but the first token of every row, `[N, D]`."""
    found = []
    handle = model.base_model.get_submodule(hookpoint).register_forward_hook(
        lambda module, args, output: found.append(output[:, 1:].flatten(0, 1))
    )
    with torch.no_grad():
        for rows in ids.split(64):
            model(input_ids=rows)
    handle.remove()
    return torch.cat(found)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two tiny models, pairs with a direction planted into the first, and what is found."""
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer(sentences=[*SENTENCES, *planted_feature.PROMPTS])
    sizes = {"causal_lm": True, "vocab_size": len(tokenizer)}
    models = [tiny_model("llama", width=32, **sizes), tiny_model("gpt2", width=24, **sizes)]
    # Of few tokens, what two random models make is nearly linear in each other.
    ids = torch.randint(6, 22, (1_800, 48))
    pairs = [activations(m, h, ids) for m, h in zip(models, HOOKPOINTS, strict=True)]
    control = nulls_and_plants.plant(pairs, 1.0, seed=0)
    args = argparse.Namespace(num_latents=256, k=8, max_steps=900, pairs=65_536)
    folder = tmp_path_factory.mktemp("planted") / "run"
    crosscoder, _ = nulls_and_plants.train(control, "rdfc", args, folder)
    stitching = planted_feature.stitch([x[-20_000:] for x in control.activations])
    subjects = planted_feature.subjects(models, [tokenizer, tokenizer], HOOKPOINTS)
    return subjects, control, crosscoder, stitching, args


def test_a_planted_feature_of_a_tiny_model(small, capsys):
    result = planted_feature.investigate(*small)
    planted_feature.show(result)
    check(result, TINY)
    assert "ranked first" in capsys.readouterr().out


def test_another_direction_is_not_taken_for_the_planted_one(small):
    """The same with an effect that is not the planted one: nothing may pass for it."""
    subjects, control, crosscoder, stitching, args = small
    wrong = torch.nn.functional.normalize(torch.randn(32), dim=0)
    wrong -= (wrong @ control.direction) * control.direction
    control = nulls_and_plants.Control(
        control.name, control.activations, wrong / wrong.norm(), control.planted
    )
    with pytest.raises(AssertionError):
        check(planted_feature.investigate(subjects, control, crosscoder, stitching, args), TINY)


@pytest.mark.slow
@pytest.mark.xdist_group("in the demo's store")
def test_a_planted_feature_of_the_demos_models(demo, tmp_path):
    folder, _ = demo
    command = [sys.executable, str(ROOT / "examples" / "planted_feature.py")]
    command += ["--data", str(folder / "demo-data"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "planted.json").read_text(encoding="utf-8"))
    check(result, 0.4)
    stitched = result["in_the_other_model"]
    # What both models have does come across: the measure can tell.
    for name, shared in result["shared_in_the_other_model"].items():
        assert shared["correlation"] > stitched[name]["correlation"] + 0.15
