"""`sparsify-crosscoder filter RUN`: which exclusive latents of a run stand for a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..evaluation.filter import FilterOptions, filter_crosscoder, filter_text
from ..hardware import pick_device
from ..harvest.model_identity import source_names
from ..runs.run import Run


@dataclass(frozen=True)
class Options:
    """Tell the exclusive latents of a run that stand for a difference from those that the other
    models predict as well. Copies of one difference are merged."""

    run: Path = option(positional=True)
    """run folder"""

    filter: FilterOptions = group(FilterOptions)

    seed: int | None = None
    """which of several --init_seeds"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder filter", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Judge the exclusive latents of a run's crosscoder, print the outcome and return it."""
    usual = options.filter.usual
    device = pick_device(usual.device)
    run = Run.open(options.run, **usual.hub.access)
    crosscoder = run.crosscoder(options.seed, device)
    found = filter_crosscoder(
        crosscoder, run.pairs(device), options.filter.config(run.config)
    ).to_dict()
    print(filter_text(found, source_names(crosscoder.sources)))
    return {"run": str(options.run), **found}
