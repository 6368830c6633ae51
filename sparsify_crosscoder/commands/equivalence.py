"""`sparsify-crosscoder equivalence RUN`: whether shared latents do the same in both models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import UsualOptions, group, option
from ..interventions.equivalence_config import EquivalenceConfig


@dataclass(frozen=True)
class Options:
    """Ablate shared latents in both models where they are active, one at a time, and correlate how
    the next tokens change at the same pairs, over words that both models know; beside it what as
    much of other latents' directions does, and the cosine of both decoders where the models share a
    basis or --stitching has the map between them."""

    run: Path = option(positional=True)
    """run folder"""

    latents: list[int] | None = None
    """shared latents to look at (a sample of all that fire often enough)"""

    sample: int = EquivalenceConfig.count
    """how many are drawn without --latents ({default})"""

    texts: int = EquivalenceConfig.texts
    """texts to read, the first 128 pairs of each, of those that the run held out ({default})"""

    controls: int = EquivalenceConfig.controls
    """other latents whose directions are the null, each of which costs a reading ({default})"""

    stitching: Path | None = None
    """maps between the models, by this folder of `stitch`, where they share no basis"""

    seed: int | None = None
    """which of several --init_seeds"""

    usual: UsualOptions = group(UsualOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder equivalence", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Ablate, print the outcome and return it."""
    from ..interventions.equivalence import equivalence
    from ..interventions.stitching import Stitching
    from ..runs.run import Run

    config = EquivalenceConfig(options.latents, options.sample, options.texts, options.controls)
    run = Run.open(options.run, **options.usual.hub.access)
    maps = None if options.stitching is None else Stitching.load(options.stitching)
    device = options.usual.device
    found = equivalence(run, config, stitching=maps, seed=options.seed, device=device)
    print(found.text())
    return {"run": str(options.run), **found.to_dict()}
