"""`sparsify-crosscoder patch RUN`: how much of the models' divergence latents account for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..evaluation.filter_config import FilterOptions
from ..hardware import pick_device
from ..interventions.graft_config import PatchConfig


@dataclass(frozen=True)
class Options:
    """Let latents write in one model what they write in the other, and measure which share of the
    KL divergence between what both expect next is gone: all latents, those of a kind, and the
    first listed differences one at a time, beside random clusters of equal size. The models share a
    basis, as a model and its fine-tune do, or --stitching has the map between them."""

    run: Path = option(positional=True)
    """run folder"""

    patch: PatchConfig = group(PatchConfig)

    stitching: Path | None = None
    """maps between the models, by this folder of `stitch`, where they share no basis"""

    filter: FilterOptions = group(FilterOptions)

    seed: int | None = None
    """which of several --init_seeds"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder patch", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Patch, print the outcome and return it."""
    from ..evaluation.differences import crosscoder_differences
    from ..interventions.graft import check_heads
    from ..interventions.patch import patch
    from ..interventions.stitching import Stitching
    from ..runs.run import Run

    usual = options.filter.usual
    run = Run.open(options.run, **usual.hub.access)
    stitching = None if options.stitching is None else Stitching.load(options.stitching)
    check_heads(run)
    crosscoder = run.crosscoder(options.seed, pick_device(usual.device))
    differences = crosscoder_differences(run, crosscoder, options.filter.config(run.config))
    found = patch(run, differences, options.patch, stitching=stitching)
    print(found.text())
    return {"run": str(options.run), **found.to_dict()}
