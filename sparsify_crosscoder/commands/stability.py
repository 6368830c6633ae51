"""`sparsify-crosscoder stability RUN RUN ...`: which differences several runs find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..evaluation.filter_config import FilterOptions


@dataclass(frozen=True)
class Options:
    """Filter several runs over the same models, of other seeds, sizes or architectures, and match
    the differences that they found by direction and by activation on the same pairs. What only one
    run finds may be an accident of its training."""

    runs: list[Path] = option(positional=True, metavar="RUN")
    """run folders; one with several --init_seeds counts as several runs"""

    nulls: list[Path] = option([], metavar="RUN")
    """runs over the same texts whose clusters are no differences of these models, such as a model
    and itself in another precision: how many clusters match one of theirs is how often different
    things match"""

    filter: FilterOptions = group(FilterOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder stability", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Compare the runs, print what they found and return it."""
    from ..evaluation.several_runs import compare_runs
    from ..runs.run import Run

    usual = options.filter.usual
    runs, nulls = (
        [Run.open(path, **usual.hub.access) for path in paths]
        for paths in (options.runs, options.nulls)
    )
    config = options.filter.config(runs[0].config)
    compared = compare_runs(runs, config, nulls=nulls, device=usual.device)
    print(compared.text())
    return compared.to_dict()
