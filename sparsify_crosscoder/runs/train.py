"""Training a crosscoder from a run's options."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file

from ..registry import get_architecture
from ..training import CrosscoderTrainer, make_trainer
from ..training.allocator import keep_freed_memory
from ..training.run_folder import RunFolder
from .config import RunConfig, run_folder
from .pairs import load_training_data
from .provenance import is_begun
from .summary import RunSummary


@dataclass(frozen=True)
class Training:
    """A run whose data are loaded, at its first step or at that of its newest checkpoint."""

    config: RunConfig
    trainer: CrosscoderTrainer

    @property
    def facts(self) -> dict[str, Any]:
        """What alignment and harvest reported."""
        return self.trainer.data.facts

    def announcement(self) -> str:
        """What is trained, on which texts."""
        return f"Training a {self.config.arch} on '{self.config.dataset}': " + json.dumps(
            self.facts
        )

    def fit(self) -> RunSummary:
        """Train to the end, and return the summary that the run folder holds."""
        return RunSummary.from_dict(self.trainer.fit())


def train(config: RunConfig, device: torch.device) -> RunSummary:
    """Train as resolved options say, from the beginning or, with `resume`, from where a run is.

    A run with `resume` that is not there yet is begun. Raises ValueError for options, models or
    texts that do not make a run, or not the one that is resumed.
    """
    return prepare_training(config, device).fit()


def prepare_training(config: RunConfig, device: torch.device) -> Training:
    """Load what a run needs, as `train` does, without a first step."""
    folder = RunFolder(run_folder(config))
    config = replace(config, resume=config.resume and is_begun(folder.path))
    if config.resume:
        folder.check_resumable(config)
    else:
        folder.check_free()
    if device.type == "cpu":
        keep_freed_memory()
    architecture = get_architecture(config.arch)
    data = load_training_data(config, device)
    trainer = make_trainer(architecture, config, data, device)
    if config.resume and folder.newest_checkpoint() is not None:
        trainer.load_state(str(folder.path))
    elif config.finetune:
        for name, sae in trainer.saes.items():
            sae.load_state_dict(load_file(f"{config.finetune}/{name}/sae.safetensors"))
    return Training(config, trainer)
