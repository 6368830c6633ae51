"""`sparsify-crosscoder export RUN`: one model's half, as other libraries read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import HubOptions, group, option
from ..endings import UsageError
from ..exports.dashboards import DashboardConfig, export_dashboards
from ..exports.export import FORMATS, export
from ..runs.run import Run

NEURONPEDIA = "neuronpedia"


@dataclass(frozen=True)
class Options:
    """Write one model's half of a crosscoder as another library's autoencoder of that model alone,
    which reads raw activations and gives raw reconstructions. Its pre-activations are those that
    the crosscoder has where the other models' normalised activations are 0. --format neuronpedia
    writes what Neuronpedia shows of latents, for all models."""

    run: Path = option(positional=True)
    """run folder"""

    format: str = option(choices=(*FORMATS, NEURONPEDIA))
    """sparsify keeps the k largest of each token; saelens and dictionary_learning know the learned
    thresholds; neuronpedia is no half, but dashboards"""

    out: Path = option()
    """new folder to write"""

    source: int | None = None
    """which of the run's models, by number: 0 is the first (not of neuronpedia, which has all)"""

    seed: int | None = None
    """which of several --init_seeds"""

    latents: list[int] = option([])
    """of neuronpedia: which latents (those that say most about what one model has alone)"""

    count: int = 100
    """of neuronpedia: how many, if none are named ({default})"""

    pairs: int = 32_768
    """of neuronpedia: pairs to read ({default:,})"""

    table: Path | None = None
    """of neuronpedia: features.parquet of an audit of the run, for its explanations"""

    device: str | None = None
    """of neuronpedia: device to run on"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write what was exported to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder export", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Export, say what was written and return it."""
    run = Run.open(options.run, **options.hub.access)
    if options.format == NEURONPEDIA:
        config = DashboardConfig(options.latents, options.count, options.pairs, table=options.table)
        made = export_dashboards(run, options.out, config, seed=options.seed, device=options.device)
        print(made.text())
        return made.to_dict()
    if options.source is None:
        raise UsageError(f"--format {options.format} is one model's half: say which, --source 0.")
    exported = export(run, options.source, options.format, options.out, seed=options.seed)
    print(exported.text())
    return exported.to_dict()
