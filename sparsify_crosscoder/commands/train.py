"""`sparsify MODEL_A DATASET --arch dfc --partners MODEL_B`, and the same as a subcommand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from simple_parsing import ArgumentParser
from sparsify.__main__ import RunConfig as SparsifyRunConfig

from ..endings import take_debug
from ..registry import ArchitectureError, architecture_names, get_architecture
from ..runs.config import RunConfig, run_folder
from ..runs.options import parse_run_config
from ..runs.provenance import is_begun
from ..runs.train import prepare_training
from ..surroundings import command_surroundings
from .processes import on_device, rank_ending

_TRAINING_GOES_ON = "the same command with --resume goes on from the newest checkpoint"


@command_surroundings()
def main(argv: Sequence[str] | None = None) -> None:
    """Train a crosscoder as the command line says; the process ends as `ending` says."""
    argv, debug = take_debug(sys.argv[1:] if argv is None else argv)
    with rank_ending(_TRAINING_GOES_ON, debug):
        if _wants_overview(argv):
            print_overview()
            raise SystemExit(0)
        config = parse_run_config(argv)
        on_device(lambda device: show_training(config, device), config)


def show_training(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Train, say what is trained on what and what came of it, and return the summary as JSON."""
    folder = run_folder(config)
    if config.resume and not is_begun(folder):
        print(f"There is no run in '{folder}' yet: it is begun.")
    training = prepare_training(config, device)
    print(training.announcement())
    summary = training.fit()
    print(summary.text(folder))
    return summary.to_dict()


def _wants_overview(argv: Sequence[str]) -> bool:
    asks_help = any(arg in ("-h", "--help") for arg in argv)
    return asks_help and not any(a == "--arch" or a.startswith("--arch=") for a in argv)


def print_overview() -> None:
    """sparsify's own help, and how to reach ours."""
    parser = ArgumentParser(prog="sparsify")
    parser.add_arguments(SparsifyRunConfig, dest="run")
    parser.print_help()
    print("\ncrosscoders over several models (sparsify-crosscoder):")
    print("  sparsify MODEL DATASET --arch NAME --partners MODEL ... [options]\n")
    for name in architecture_names():
        try:
            description = get_architecture(name).description
        except ArchitectureError as error:
            description = str(error)
        print(f"  --arch {name:<12} {description}")
    print("\n  sparsify --arch NAME --help lists the options of an architecture.")
