"""Activations of two models over the texts of a case, and crosscoders that are trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from organism_settings import ARCHITECTURES, Case, Scale
from organism_texts import Written, texts_by_number, texts_file

from sparsify_crosscoder import ActivationStore, Run
from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.pairs import harvest_run
from sparsify_crosscoder.runs.train import train

EPOCHS = 1000
"""More than any number of steps takes."""


@dataclass(frozen=True)
class Harvest:
    """What a case's crosscoders are trained on."""

    store: ActivationStore
    texts: list[Written]
    """By the numbers that the store's texts have."""

    reference: Path | None
    """A store of the same texts in which the base stands for the organism."""


def harvested(case: Case) -> Harvest:
    """The activations of a case; of two families, those of the base as a reference as well."""
    bench, file = case.bench, texts_file(case.bench, case.organism, case.text)
    plain = case.pair == "other"
    store, texts = _store(
        case.folder / "store", file, (case.first, bench.partner(case.organism)), plain
    )
    reference = None
    if plain:
        reference = case.folder / "reference"
        _store(reference, file, (case.first, str(bench.base)), plain)
    return Harvest(store, texts, reference)


def _store(
    folder: Path, file: Path, models: tuple[str, str], plain: bool
) -> tuple[ActivationStore, list[Written]]:
    model, partner = models
    words = [model, str(file), "--partners", partner, "--cache", str(folder)]
    words += ["--chat_format", "plain" if plain else "template"]
    config = parse_run_config(words)
    if not _is_whole(folder):
        harvest_run(config, pick_device(config.device))
    return ActivationStore.open(folder), texts_by_number(config, file)


def _is_whole(folder: Path) -> bool:
    try:
        ActivationStore.open(folder)
    except ValueError:
        return False
    return True


def trained(case: Case, architecture: str, seed: int) -> Run:
    """The run of an architecture and a seed on a case's store."""
    name = f"{architecture}-{seed}"
    if not (case.folder / name / "summary.json").is_file():
        words = [case.first, str(case.folder / "store"), *ARCHITECTURES[architecture]]
        words += [*training_words(case.bench.scale), "--init_seeds", str(seed)]
        words += ["--save_dir", str(case.folder), "--run_name", name, "--resume"]
        config = parse_run_config([*words, "--log_to_wandb", "False"])
        train(config, pick_device(config.device))
    return Run.open(case.folder / name)


def training_words(scale: Scale) -> list[str]:
    """How long everything is trained, as options."""
    options = {
        "num_latents": scale.latents,
        "k": scale.k,
        "max_steps": scale.steps,
        "pairs_per_step": scale.pairs_per_step,
        "epochs": EPOCHS,
        "lr": 1e-3,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
