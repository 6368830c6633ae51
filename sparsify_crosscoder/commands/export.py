"""`sparsify-crosscoder export RUN`: one model's half, as other libraries read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import HubOptions, group, option
from ..exports.export import FORMATS, export
from ..runs.run import Run


@dataclass(frozen=True)
class Options:
    """Write one model's half of a crosscoder as another library's autoencoder of that model alone,
    which reads raw activations and gives raw reconstructions. Its pre-activations are those that
    the crosscoder has where the other models' normalised activations are 0."""

    run: Path = option(positional=True)
    """run folder"""

    source: int = option()
    """which of the run's models, by number: 0 is the first"""

    format: str = option(choices=tuple(FORMATS))
    """sparsify keeps the k largest of each token; the others know the learned thresholds"""

    out: Path = option()
    """new folder to write"""

    seed: int | None = None
    """which of several --init_seeds"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write what was exported to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder export", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Export, say what was written and return it."""
    run = Run.open(options.run, **options.hub.access)
    exported = export(run, options.source, options.format, options.out, seed=options.seed)
    print(exported.text())
    return exported.to_dict()
