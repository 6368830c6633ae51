"""Steering and transfer on the demo's two real models."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
benchmark = importlib.import_module("steering")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", benchmark.MODELS)
def test_batches_are_what_hooks_written_by_hand_give_one_by_one(demo_models, name):
    """Prompts of unequal lengths at several strengths, by hooks and by nnsight."""
    found = benchmark.measure(demo_models / name, "float32", torch.device("cpu"), 1, [0, 2, 6], 32)
    assert found["differ"] == 0
    assert found["answers"] == 9


@pytest.mark.xdist_group("demo")
def test_sentiment_moves_to_the_other_model_by_shared_latents(demo, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "transfer_a_vector.py")]
    command += ["--run", str(demo[0] / "demo"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-4000:]
    for file in ("negative-0-to-1.json", "negative-1-to-0.json"):
        result = json.loads((tmp_path / file).read_text(encoding="utf-8"))
        assert len(result["latents"]) == 10
        effects = result["effects"]
        assert effects["strengths"] == [0, 0.5, 1, 2] and len(effects["random"]) == 20
        original, moved = effects["original"], effects["transferred"]
        assert original[2] > 2 * original[0]
        assert moved[2] > 1.5 * moved[0]
        assert effects["random_as_strong"][1:3] == [0, 0]
