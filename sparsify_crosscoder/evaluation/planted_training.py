"""Training a run's crosscoder on its own pairs with plants: from zero, or from where it ended.

From where it ended, only the exclusive blocks begin again, as a new run's do, at what stands out in
the planted pairs; all else goes on. That takes a fraction of the run's steps, and finds somewhat
less.
"""

from __future__ import annotations

import copy
import io
import shutil
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..crosscoders import Crosscoder
from ..registry import get_architecture
from ..runs.config import RunConfig
from ..runs.pairs import run_store
from ..runs.run import Run
from ..runs.texts import split_run_windows
from ..store.store import ActivationStore
from ..store.store_stream import StoreStream
from ..training.data import PairedData
from ..training.run_folder import SCHEDULE
from ..training.trainer import make_trainer
from .plants import PlantedPairs, PlantedStream

RESTARTED = ("rdfc",)
"""Architectures whose exclusive latents begin where pairs stand out, so that a part of the steps
finds what all find; the others are trained from zero."""


class Refit(NamedTuple):
    """How a crosscoder is trained on planted pairs."""

    steps: int
    from_zero: bool

    @classmethod
    def of(cls, run: Run, share: float | None = None) -> Refit:
        """A share of a run's steps from where it ended, or all of them from zero."""
        steps = run.summary().whole["steps"]
        if share is None or run.config.arch not in RESTARTED:
            return cls(steps, True)
        return cls(max(round(share * steps), 1), False)

    def trainings(self, rounds: int) -> int:
        """For so many copies of the pairs with plants, and one without: from zero that is the
        run's own."""
        return rounds if self.from_zero else rounds + 1


class PlantedRun(NamedTuple):
    """A run with a store, whose pairs are planted into."""

    config: RunConfig
    store: ActivationStore
    crosscoder: Crosscoder
    """The one that was trained, of several the first."""

    @classmethod
    def of(cls, run: Run, device: torch.device) -> PlantedRun:
        """Raises ValueError where the run has no store, or the store is another one now."""
        store = run_store(run.config)
        if store is None:
            raise ValueError(
                f"The run '{run.path}' has no activation store, into whose pairs differences are "
                f"planted; train it with --cache, or on a store that `harvest` filled."
            )
        seeds = run.config.init_seeds
        return cls(run.config, store, run.crosscoder(seeds[0] if len(seeds) > 1 else None, device))


def train_planted(run: PlantedRun, planted: PlantedPairs, refit: Refit, folder: Path) -> Crosscoder:
    """Train as the run was, on its pairs with plants; `folder` is emptied before and after."""
    config = _options(run.config, refit, folder)
    train, _ = split_run_windows(config, run.store.windows)
    assert config.order_seed is not None
    stream = StoreStream(run.store, window_rows=train, seed=config.order_seed)
    data = PairedData(PlantedStream(stream, planted), None, run.crosscoder.sources)
    shutil.rmtree(folder, ignore_errors=True)
    architecture = get_architecture(config.arch)
    trainer = make_trainer(architecture, config, data, run.crosscoder.device)
    (crosscoder,) = trainer.saes.values()
    if not refit.from_zero:
        begin_again(crosscoder, run.crosscoder)
        crosscoder.prepare(partial(trainer.first_pairs, crosscoder))
    with redirect_stdout(io.StringIO()):
        trainer.fit(show_progress=False)
    shutil.rmtree(folder, ignore_errors=True)
    return crosscoder.eval()


def _options(config: RunConfig, refit: Refit, folder: Path) -> RunConfig:
    options = copy.deepcopy(config)
    options.resolve_order()
    options.save_dir, options.run_name, options.resume = str(folder.parent), folder.name, False
    options.log_to_wandb, options.save_best = False, False
    options.init_seeds, options.max_steps = options.init_seeds[:1], refit.steps
    options.save_every = refit.steps
    # What is not to be initialised is what is trained already.
    options.finetune = None if refit.from_zero else str(folder)
    if not refit.from_zero:
        options.lr_decay_steps = min(options.lr_decay_steps, refit.steps // 3)
        for name in SCHEDULE:
            setattr(options, name, None)  # what fits so many steps
    return options


@torch.no_grad()
def begin_again(fresh: Crosscoder, trained: Crosscoder) -> None:
    """Give a fresh crosscoder all of a trained one but its exclusive blocks."""
    blocks = fresh.partition.blocks
    alone = [b for b, block in enumerate(blocks) if len(block.sources) == 1]
    before = [(fresh.encoder.weights[b].clone(), fresh.decoders[b].clone()) for b in alone]
    fresh.load_state_dict(trained.state_dict())
    for b, (encoder, decoder) in zip(alone, before, strict=True):
        fresh.encoder.weights[b].copy_(encoder)
        fresh.decoders[b].copy_(decoder)
        fresh.encoder.bias[blocks[b].start : blocks[b].stop] = 0
