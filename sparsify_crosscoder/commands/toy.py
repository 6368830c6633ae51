"""`sparsify-crosscoder toy`: how well architectures find concepts that are known."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..command_line import execute
from ..endings import UsageError
from ..evaluation.toy import figures
from ..evaluation.toy.grid import rows_of, run_grid
from ..evaluation.toy.presets import PRESETS, VARIANTS
from ..hardware import pick_device


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv, goes_on="the same command goes on where it was")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing of a benchmark, print and draw all results and return them."""
    if args.seeds < 1 or args.jobs < 1:
        raise UsageError("--seeds and --jobs must be at least 1.")
    preset = PRESETS[args.preset]
    device = str(pick_device(args.device)) if args.device else None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    rows = rows_of(preset, seeds, args.variants, args.sizes)
    jobs = args.jobs if device == "cpu" else 1
    results = run_grid(preset, rows, Path(args.out), jobs=jobs, device=device)
    print(figures.table(results))
    try:
        for png in figures.draw(results, Path(args.out)):
            print(f"Figure: {png}")
    except ModuleNotFoundError:
        print("No figures: they need matplotlib (pip install matplotlib).", file=sys.stderr)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder toy",
        description="Train crosscoders on pairs made of known concepts, some of one model alone, "
        "and compare what they found. A run that was stopped goes on where it was.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="small", help="default: small")
    parser.add_argument("--out", default="toy", help="folder of the results (default: toy)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--first_seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="NAME",
        help=f"of {', '.join(VARIANTS).replace('%', '%%')} (default: all)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=float,
        metavar="X",
        help="latents per concept (default: the preset's)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="runs at once on a CPU (default: one per core)",
    )
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--json", metavar="PATH", help="write all results to this file as well")
    return parser
