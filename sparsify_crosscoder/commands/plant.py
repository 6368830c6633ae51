"""`sparsify-crosscoder plant RUN`: which differences would be found, by planting known ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import UsualOptions, group, option
from ..evaluation.plant_config import KINDS, Directions, Kind, PlantConfig
from ..hardware import pick_device

GOES_ON = "the same command goes on where it stopped"


@dataclass(frozen=True)
class Options:
    """Say which differences `filter` would have found: known ones are planted into the run's own
    activations, several at a time, a crosscoder is trained on them as the run's was, and the list
    is asked for each. Where the list has nothing, this is what it would have had."""

    run: Path = option(positional=True)
    """run folder, of a run that was trained from an activation store"""

    kinds: list[Kind] = option(list(KINDS))
    """what says where a plant is: chance (random), a token wherever it occurs (token), or the texts
    in which a token occurs (topic); all by default"""

    sizes: list[float] = option(list(PlantConfig.sizes))
    """lengths of what is added, in median norms of the model's centred activations (1/2, 1/4, 1/8
    and 1/16)"""

    frequencies: list[float] = option(list(PlantConfig.frequencies))
    """shares of the pairs that have a plant (0.01, 0.003, 0.001 and 0.0003)"""

    replicates: int = PlantConfig.replicates
    """plants of each kind, size and share, in the models in turn ({default})"""

    directions: Directions = PlantConfig.directions
    """drawn with the covariance of the activations, or anywhere ({default})"""

    together: int = PlantConfig.together
    """plants of each model in one copy of the pairs, at most ({default}); fewer where the run has
    few exclusive latents"""

    refit: float | None = PlantConfig.refit
    """train from where the run ended, in this share of its steps, and not from zero, as the run
    was: cheaper, but near the border of what is found less is (rdfc only)"""

    seed: int = PlantConfig.seed
    """of places and directions ({default})"""

    out: Path | None = None
    """folder for what is found, from which the same command goes on (RUN/plants)"""

    pairs: int = PlantConfig.pairs
    """pairs that each list reads, at most ({default:,})"""

    usual: UsualOptions = group(UsualOptions)

    def plants(self) -> PlantConfig:
        """Raises ValueError for what cannot be planted."""
        return PlantConfig(
            kinds=tuple(self.kinds),
            sizes=tuple(self.sizes),
            frequencies=tuple(self.frequencies),
            replicates=self.replicates,
            directions=self.directions,
            together=self.together,
            refit=self.refit,
            pairs=self.pairs,
            seed=self.seed,
        )


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder plant", Options, show, argv, goes_on=GOES_ON)


def show(options: Options) -> dict[str, Any]:
    """Plant, look up, print the table and return everything."""
    from ..evaluation.plant_files import default_folder
    from ..evaluation.power import PlantPlan, carry_out
    from ..runs.run import Run

    config, usual = options.plants(), options.usual
    run = Run.open(options.run, **usual.hub.access)
    plan = PlantPlan.of(run, config, pick_device(usual.device))
    print(plan.text(), flush=True)
    found = carry_out(plan, options.out or default_folder(run))
    print(found.text())
    return {"run": str(options.run), **found.to_dict()}
