"""What the list of differences finds of what is planted into a run's own activations.

The whole default pipeline is asked: pairs with plants are trained on, filtered and listed as the
run's were, many plants in one copy of the pairs. With the same plants left out, the same directions
are looked up once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder
from ..files import atomic_write_json
from ..hardware import pick_device
from ..runs.run import Run
from ..store.store_stream import StoreStream
from .differences import Difference, DifferenceConfig, Differences, differences_of
from .false_exclusives import FilterConfig
from .filter import filter_crosscoder
from .noted_pairs import stored_pairs
from .plant_config import Cell, PlantConfig
from .plant_files import (
    RECALL,
    check_settings,
    crosscoder_digest,
    default_folder,
    kept_recall,
    read_rounds,
    write_round,
)
from .plant_places import Placed, StorePlaces, Wanted, pack, random_of
from .planted_recall import PlantedRecall, PlantFound, Round
from .planted_training import PlantedRun, Refit, train_planted
from .plants import Plant, PlantedPairs, PlantedStream, SourceScale

DIRECTIONS = 7  # what random numbers are for, beside those of `plant_places`
ORDER = 8

LIKE = 0.8
"""Cosine from which an entry's direction is the one that was planted."""

LOOKING = 2
"""Pairs of training that a pair of the list takes as long as."""

JUDGED = 8_192
"""Pairs that exclusive latents are judged on: no verdict says whether an entry is a finding."""

CROWD = 6
"""Exclusive latents of a source for each plant that it has in one copy of the pairs, at least."""


@dataclass(frozen=True)
class PlantPlan:
    """What is planted into a run, round by round, and how it is looked for."""

    run: PlantedRun
    config: PlantConfig
    rounds: list[list[Plant]]
    nowhere: list[Cell]
    """Of each plant that no place of the store is for, or none that is left."""

    refit: Refit
    settings: dict[str, Any]
    seconds: float
    """That it is expected to take, as fast as the run was trained."""

    @classmethod
    def of(cls, run: Run, config: PlantConfig, device: torch.device) -> PlantPlan:
        """Places and directions by the seed; raises ValueError for a run without a store."""
        opened, refit = PlantedRun.of(run, device), Refit.of(run, config.refit)
        sources = len(opened.crosscoder.d_sources)
        wanted = [
            Wanted(cell, replicate, (turn + replicate) % sources)
            for cell, turn in zip(config.cells, config.turns, strict=True)
            for replicate in range(config.replicates)
        ]
        order = np.random.default_rng([ORDER, config.seed % 2**64]).permutation(len(wanted))
        room = min([config.together, *_room(opened.crosscoder)])
        places = StorePlaces(opened.store, config.seed)
        placed, nowhere = pack([wanted[i] for i in order], places, room)
        sample = StoreStream(opened.store, seed=opened.config.shuffle_seed).sample(
            opened.config.normalization_pairs
        )
        scales = [SourceScale.of(rows, opened.config.outlier_multiple) for rows in sample]
        rounds = [
            [_plant(one, scales[one.wanted.source], config) for one in some] for some in placed
        ]
        settings = {
            "plants": asdict(config),
            "crosscoder": crosscoder_digest(run),
        }
        summary = run.summary()
        looked_at = LOOKING * min(config.pairs, len(opened.store))
        pairs = (len(rounds) + 1) * looked_at
        pairs += refit.trainings(len(rounds)) * refit.steps * opened.config.pairs_per_step
        seconds = pairs * summary.wall_seconds / summary.pairs
        nothing = [one.cell for one in nowhere]
        return cls(opened, config, rounds, nothing, refit, settings, seconds)

    @property
    def plants(self) -> list[Plant]:
        return [one for some in self.rounds for one in some]

    def text(self) -> str:
        """What it will cost."""
        start = "zero" if self.refit.from_zero else "where the run ended"
        return (
            f"{len(self.plants):,} differences are planted: "
            f"{self.refit.trainings(len(self.rounds)):,} trainings of {self.refit.steps:,} steps "
            f"from {start} and {len(self.rounds) + 1:,} lists, some {self.seconds / 60:,.0f} "
            f"minutes at the rate of the run's own training"
        )


def _room(crosscoder: Crosscoder) -> list[int]:
    """Plants that each source with an exclusive block has room for."""
    partition = crosscoder.partition
    sizes = [len(partition.exclusive(s)) for s in range(partition.num_sources)]
    return [max(size // CROWD, 1) for size in sizes if size]


def _plant(placed: Placed, scale: SourceScale, config: PlantConfig) -> Plant:
    cell, replicate, source = placed.wanted
    direction = scale.draw(config.directions, random_of(DIRECTIONS, config.seed, placed.wanted))
    pairs, token = placed.place
    return Plant(cell, replicate, source, pairs, direction, cell.size * scale.norm, token)


def planted_recall(
    run: Run,
    config: PlantConfig | None = None,
    *,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
) -> PlantedRecall:
    """Plant known differences into a run's pairs, and count which of them the list has.

    What is done is kept in `out`, the folder `plants` of the run by default, and not done again.
    Raises ValueError where it holds plants of other settings, or the run has no store.
    """
    plan = PlantPlan.of(run, config or PlantConfig(), pick_device(device))
    return carry_out(plan, default_folder(run) if out is None else Path(out))


def carry_out(plan: PlantPlan, out: Path) -> PlantedRecall:
    """Train and look up what a folder does not hold yet; see `planted_recall`."""
    out.mkdir(parents=True, exist_ok=True)
    check_settings(plan.settings, out)
    done = read_rounds(out)
    todo = [[], *plan.rounds]  # the first with nothing planted
    with tqdm(total=len(todo), initial=len(done), desc="Plants", unit="training") as bar:
        for plants in todo[len(done) :]:
            done.append(_round(plan, plants, out / "training"))
            write_round(out, done[-1])
            bar.update()
    found = PlantedRecall(done[1:], done[0], plan.nowhere, plan.settings, plan.refit.steps)
    atomic_write_json(out / RECALL, found.to_dict())
    return found


def power_text(run: Run) -> str:
    """What the list of a run would have found, if that is kept with it, or how to learn it."""
    kept = kept_recall(run)
    if kept is None:
        return f"what would have been found: `sparsify-crosscoder plant {run.path}`"
    return f"{kept.missed()}\n{kept.text()}"


def _round(plan: PlantPlan, plants: Sequence[Plant], folder: Path) -> Round:
    started, run = time.monotonic(), plan.run
    planted = PlantedPairs(plants, len(run.store))
    if plants or not plan.refit.from_zero:
        crosscoder = train_planted(run, planted, plan.refit, folder)
    else:
        crosscoder = run.crosscoder
    found = planted_list(run, crosscoder, planted, plan.config.pairs)
    rows = [looked_up(found, one) for one in plants or plan.plants]
    seconds = time.monotonic() - started
    return Round(bool(plants), rows, len(found.findings), seconds)


def planted_list(
    run: PlantedRun, crosscoder: Crosscoder, planted: PlantedPairs, pairs: int
) -> Differences:
    """The list of differences of a crosscoder on so many of a run's pairs with plants, whatever
    their KL."""
    seed, outliers = run.config.shuffle_seed, run.config.outlier_multiple
    stream = PlantedStream(StoreStream(run.store, seed=seed), planted)
    noted = planted.noted(stored_pairs(run.store, pairs, seed))
    judged = FilterConfig(pairs=JUDGED, outlier_multiple=outliers)
    filtered = filter_crosscoder(crosscoder, stream, judged)
    settings = DifferenceConfig.of(replace(judged, pairs=pairs))
    return differences_of(crosscoder, noted, filtered, settings)


def looked_up(found: Differences, plant: Plant) -> PlantFound:
    """The first entry of a list that has a plant's direction."""
    nearest = 0.0
    row = PlantFound(
        *plant.cell,
        plant.replicate,
        plant.source,
        len(plant.pairs),
        plant.token,
        finding=False,
        rank=None,
        entry=None,
        score=None,
        cosine=0.0,
    )
    for one in found.entries:
        cosine = _likeness(one, plant)
        nearest = max(nearest, cosine)
        if cosine >= LIKE:
            return replace(
                row,
                finding=one.finding,
                rank=one.rank,
                entry=one.kind,
                score=one.score,
                cosine=cosine,
            )
    return replace(row, cosine=nearest)


def _likeness(one: Difference, plant: Plant) -> float:
    """Cosine with a plant: of what its source has more of, or another of its basis less of."""
    if len(one.direction) != len(plant.direction):
        return 0.0
    sign = 1 if one.source == plant.source else -1
    return sign * float(F.cosine_similarity(one.direction.float(), plant.direction, dim=0))
