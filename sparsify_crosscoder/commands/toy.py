"""`sparsify-crosscoder toy`: how well architectures find concepts that are known."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..command_line import run_command
from ..command_options import option
from ..endings import UsageError
from ..evaluation.toy import figures
from ..evaluation.toy.grid import rows_of, run_grid
from ..evaluation.toy.presets import PRESETS, VARIANTS
from ..hardware import pick_device


@dataclass(frozen=True)
class Options:
    """Train crosscoders on pairs made of known concepts, some of one model alone, and compare what
    they found. A run that was stopped goes on where it was."""

    preset: str = option("small", choices=PRESETS)
    """default: {default}"""

    out: str = "toy"
    """folder of the results (default: {default})"""

    seeds: int = 5
    """number of seeds (default: {default})"""

    first_seed: int = 0
    """default: {default}"""

    variants: list[str] | None = option(
        None,
        choices=VARIANTS,
        metavar="NAME",
        help=f"of {', '.join(VARIANTS).replace('%', '%%')} (default: all)",
    )

    sizes: list[float] | None = option(None, metavar="X")
    """latents per concept (default: the preset's)"""

    jobs: int = os.cpu_count() or 1
    """runs at once on a CPU (default: one per core)"""

    device: str | None = None
    """default: cuda if there is one, else cpu"""

    json: str | None = option(None, metavar="PATH")
    """write all results to this file as well"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    goes_on = "the same command goes on where it was"
    run_command("sparsify-crosscoder toy", Options, show, argv, goes_on=goes_on)


def show(options: Options) -> list[dict[str, Any]]:
    """Run what is missing of a benchmark, print and draw all results and return them."""
    if options.seeds < 1 or options.jobs < 1:
        raise UsageError("--seeds and --jobs must be at least 1.")
    preset, out = PRESETS[options.preset], Path(options.out)
    device = str(pick_device(options.device)) if options.device else None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = rows_of(preset, seeds, options.variants, options.sizes)
    jobs = options.jobs if device == "cpu" else 1
    results = run_grid(preset, rows, out, jobs=jobs, device=device)
    print(figures.table(results))
    try:
        for png in figures.draw(results, out):
            print(f"Figure: {png}")
    except ModuleNotFoundError:
        print("No figures: they need matplotlib (pip install matplotlib).", file=sys.stderr)
    return results
