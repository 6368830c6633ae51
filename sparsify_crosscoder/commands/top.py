"""`sparsify-crosscoder top RUN`: where the latents of a run fire most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import HubOptions, group, option


@dataclass(frozen=True)
class Options:
    """Show the text on which latents fire most, in every model's tokens. Without --latents: the
    strongest of each exclusive block in turn, or those with the most extreme relative decoder norm.
    What all models read as the same tokens is shown once."""

    run: Path = option(positional=True)
    """run folder"""

    latents: list[int] | None = None
    """latents to show"""

    count: int = 5
    """latents per model (default {default})"""

    snippets: int = 5
    """snippets per latent (default {default})"""

    pairs: int = 100_000
    """pairs to search ({default:,})"""

    seed: int | None = None
    """which of several --init_seeds"""

    device: str | None = None
    """device to run on"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write what is shown to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder top", Options, show, argv)


def show(options: Options) -> list[dict[str, Any]]:
    """Show where latents of a run fire, and return that."""
    from ..evaluation.top import top
    from ..runs.run import Run

    found = top(
        Run.open(options.run, **options.hub.access),
        latents=options.latents,
        count=options.count,
        snippets=options.snippets,
        pairs=options.pairs,
        seed=options.seed,
        device=options.device,
    )
    print(found.text())
    return found.to_list()
