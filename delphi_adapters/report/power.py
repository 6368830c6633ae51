"""What the list would have had: how many of the differences are found that are planted."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.command_options import option
from sparsify_crosscoder.hashing import hash_file
from sparsify_crosscoder.scorability import FILTER_PAIRS

from ..audit.outcome import Cost, Outcome
from ..audit.runner import Record
from ..audit.stage import TEXTS, Context, Stage
from ..audit.stages.filter import Filter, FilterOptions
from ..audit.stages.train import training_cost

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.planted_recall import PlantedRecall
    from sparsify_crosscoder.evaluation.power import PlantConfig


@dataclass
class PowerOptions:
    """Which known differences are planted, and looked for."""

    power_plants: int = 1
    """differences to plant of each kind (random pairs, a token, a topic), size and share, as of
    `sparsify-crosscoder plant` ({default}: one more training); 0: what is missed is not known"""

    power_sizes: list[float] = option([1 / 2, 1 / 8])
    """their lengths, in median norms of the model's centred activations (1/2 and 1/8)"""

    power_shares: list[float] = option([0.01, 0.001])
    """shares of the pairs that have one (0.01 and 0.001)"""

    def __post_init__(self):
        if self.power_plants < 0:
            raise ValueError("--power_plants must not be negative; 0 plants nothing.")
        if min(self.power_sizes) <= 0:
            raise ValueError("--power_sizes are multiples of a norm, above 0.")
        if not all(0 < share <= 0.5 for share in self.power_shares):
            raise ValueError("--power_shares are shares of the pairs, above 0 and up to 0.5.")


class Power(Stage[PowerOptions, "PlantedRecall | None"]):
    """Plants differences, or takes what `plant` has kept; gives what is found, None if left out."""

    name = "power"
    what = "which differences would have been found, by planting known ones"
    needs = ("harvest", "train")
    after = ("filter", "null")
    Options = PowerOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        pairs, kept = ctx.options(FilterOptions).filter_pairs, _kept_with(ctx)
        return asdict(self.options) | {"filter_pairs": pairs, "kept": kept and hash_file(kept)}

    def estimate(self, ctx: Context) -> Cost:
        if _kept_with(ctx) or self._left_out(ctx):
            return Cost()
        config, training = self._config(ctx), training_cost(ctx, ctx.training.max_steps).seconds
        trainings = config.trainings(sources=2)
        listing = sum(one.estimate(ctx).seconds for one in ctx.stages if isinstance(one, Filter))
        seconds = trainings * training + (trainings + 1) * listing
        return Cost(seconds, {"plants": config.plants, "trainings": trainings})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.evaluation.plant_files import FILES, kept_recall
        from sparsify_crosscoder.evaluation.power import PlantPlan, carry_out

        if kept := _kept_with(ctx):
            for name in FILES:
                shutil.copy2(kept.parent / name, folder / name)
        elif reason := self._left_out(ctx):
            return Outcome({"left_out": reason})
        else:
            plan = PlantPlan.of(ctx.run, self._config(ctx), ctx.device)
            if not plan.plants:
                return Outcome({"left_out": "too few pairs for what was to be planted"})
            print(plan.text(), flush=True)
            carry_out(plan, folder)
        found = kept_recall(ctx.run, folder)
        assert found is not None
        print(found.text())
        told = {"recall": found.recall().to_dict(), "found_without": found.found_without}
        return Outcome(told | {"kept": bool(kept)}, [folder / name for name in FILES])

    def output(self, ctx: Context, folder: Path, record: Record) -> PlantedRecall | None:
        from sparsify_crosscoder.evaluation.plant_files import kept_recall

        return kept_recall(ctx.run, folder) if "recall" in record.result else None

    def _config(self, ctx: Context) -> PlantConfig:
        from sparsify_crosscoder.evaluation.power import PlantConfig

        return PlantConfig(
            sizes=tuple(self.options.power_sizes),
            frequencies=tuple(self.options.power_shares),
            replicates=self.options.power_plants,
            pairs=ctx.options(FilterOptions).filter_pairs or FILTER_PAIRS,
        )

    def _left_out(self, ctx: Context) -> str | None:
        from sparsify_crosscoder.runs.pairs import run_store

        if self.options.power_plants == 0:
            return "--power_plants 0"
        without = ctx.trained and run_store(ctx.run.config) is None
        return "the run has no activation store" if without else None


def _kept_with(ctx: Context) -> Path | None:
    from sparsify_crosscoder.evaluation.plant_files import kept_file

    return kept_file(ctx.run) if ctx.trained else None
