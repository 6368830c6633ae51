"""`sparsify-crosscoder push RUN REPO`: a run on the hub, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import HubOptions, group, option


@dataclass(frozen=True)
class Options:
    """Upload a run to the Hugging Face hub, with a model card that names its models, hookpoints,
    data, k, FVE, nulls, and how to load it. Checkpoints and stores stay here; of places on this
    machine only the last step is kept."""

    run: Path = option(positional=True)
    """run folder"""

    repo: str = option(positional=True)
    """NAMESPACE/NAME of the repository, made if it is not there"""

    filter: Path | None = None
    """what `filter RUN --json` wrote: the card then has findings and rates of nulls"""

    license: str | None = None
    """the hub's name of a licence for the card, such as apache-2.0"""

    private: bool = False
    """make a new repository private"""

    dry_run: bool = False
    """show the card and list the files, and upload nothing; needs no network"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write what was uploaded to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder push", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Upload, say what and where, and return it."""
    from ..evaluation.filter import FilterRecord
    from ..exports.push import PushConfig, push
    from ..runs.run import Run

    listed = None
    if options.filter is not None:
        listed = FilterRecord.read(options.filter, "Run filter with --json again.").found
    run = Run.open(options.run, **options.hub.access)
    config = PushConfig(options.repo, listed, options.license, options.private or None)
    pushed = push(run, config, dry_run=options.dry_run)
    print(pushed.text())
    return pushed.to_dict()
