"""`sparsify-crosscoder filter RUN`: what differs between the models of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..evaluation.filter_config import FilterOptions
from ..hardware import pick_device


@dataclass(frozen=True)
class Options:
    """List what differs between the models of a run: latents that one model has alone, shared
    latents that turned or grew, shifts of the mean and linear changes, by one score. Copies of one
    difference are merged. Then tell the exclusive latents that stand for a difference from those
    that the other models predict as well."""

    run: Path = option(positional=True)
    """run folder"""

    filter: FilterOptions = group(FilterOptions)

    reference: Path | None = None
    """store of other models over the same texts. With a fine-tune's base in its place, and else the
    same pairs: lists how far the fine-tune is from it; otherwise what is there as well is left
    out"""

    nulls: list[Path] = option([])
    """run folders over pairs without what is looked for, beside those that `null` made of this run:
    what is listed of them tells which share of the list is false"""

    q: float | None = None
    """largest q value of a finding, such as .1: by the nulls, and not by its least strength"""

    all: bool = False
    """also list differences that are beyond chance, but too small for a finding"""

    directions: Path | None = None
    """folder for the findings' directions, as vectors that `steer` takes"""

    verify: int = 0
    """how many of the first findings to verify: whether they cause what the model that has them
    answers otherwise ({default}); one prompt in four is kept out of the list for it"""

    seed: int | None = None
    """which of several --init_seeds"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder filter", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """List the differences of a run, print the outcome and return it."""
    from ..evaluation.differences import crosscoder_differences, differences_text
    from ..evaluation.filter import filter_text
    from ..evaluation.nulls.lists import with_nulls
    from ..evaluation.power import power_text
    from ..harvest.model_identity import source_names
    from ..interventions.difference_causes import prompts_kept_out, told_with_causes
    from ..interventions.difference_vectors import save_directions
    from ..runs.run import Run

    usual = options.filter.usual
    if options.verify < 0:
        raise ValueError(f"--verify is a number of findings, not {options.verify}.")
    if options.q is not None and not 0 < options.q <= 1:
        raise ValueError(f"--q is a share of findings above 0, not {options.q}.")
    if options.reference is not None and (options.nulls or options.q is not None):
        raise ValueError("What nulls list is no measure of a list with --reference; leave one off.")
    run = Run.open(options.run, **usual.hub.access)
    nulls = [Run.open(null, **usual.hub.access) for null in options.nulls]
    crosscoder = run.crosscoder(options.seed, pick_device(usual.device))
    config = options.filter.config(run.config)
    kept_out = prompts_kept_out(run, crosscoder) if options.verify else {}
    found = crosscoder_differences(run, crosscoder, config, options.reference, [*kept_out])
    if options.reference is None:
        found = with_nulls(found, run, nulls, options.q)
    names = source_names(crosscoder.sources)
    told = told_with_causes(run, crosscoder, found, options.verify, kept_out)
    print(differences_text(told, names, options.all))
    if not found.findings:
        print(power_text(run))
    print(f"\n{filter_text(told, names)}")
    if options.directions is not None:
        save_directions(options.directions, found.findings, run.ends)
    return {"run": str(options.run), **told}
