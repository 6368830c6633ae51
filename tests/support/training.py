"""Trainers of small crosscoders on planted pairs, and what they leave."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsify_crosscoder import training
from sparsify_crosscoder.config import CrosscoderTrainConfig
from sparsify_crosscoder.registry import get_architecture
from sparsify_crosscoder.training import CrosscoderTrainer
from tests.support.crosscoders import fitting_widths, small_config
from tests.support.streams import planted_data


def make_trainer(
    folder, arch="dfc", sae=None, data=None, device="cpu", **options
) -> CrosscoderTrainer:
    """A trainer of 20 steps over planted pairs, with options of its config, and of its coder's."""
    architecture = get_architecture(arch)
    fractions = "exclusive_fractions" in architecture.config_class.__dataclass_fields__
    extra = {"exclusive_fractions": [0.15, 0.15]} if fractions else {}
    cfg = CrosscoderTrainConfig(
        sae=small_config(arch, **{**extra, **(sae or {})}),
        **{
            "pairs_per_step": 64,
            "max_steps": 20,
            "epochs": 10,
            "lr": 1e-2,
            "log_to_wandb": False,
            "save_dir": str(folder),
            "run_name": "run",
            "log_every": 5,
            "dead_feature_threshold": 200,
            "normalization_pairs": 512,
            **options,
        },
    )
    if data is None:
        data = planted_data(fitting_widths(arch, [12, 9], [10, 10]))
    return training.make_trainer(architecture, cfg, data, device)


def weights(folder: str | Path) -> dict[str, Tensor]:
    """Of the crosscoder that a trainer of `folder` left."""
    return load_file(Path(folder) / "run" / "layers.1+layers.2" / "sae.safetensors")


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """What a trainer of `folder` noted, by line."""
    lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
