"""What the simplest methods see of the same pairs, beside the list of what differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json

from ..audit.outcome import Cost, Outcome
from ..audit.runner import Record
from ..audit.stage import TEXTS, Context, Stage
from ..audit.stages.filter import Filter
from ..audit.stages.harvest import num_pairs

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.baselines.beside import BaselinesBeside

FILE = "baselines.json"
LISTED = 50  # entries of the list that are compared


@dataclass
class BaselineOptions:
    """Whether the simplest methods are asked, and how much of the pairs they hold."""

    baseline_memory: float = 2e9
    """bytes of activations that the simplest methods look at; 0: none are asked ({default:,.0f})"""

    def __post_init__(self):
        if self.baseline_memory < 0:
            raise ValueError("--baseline_memory must not be negative; 0 leaves baselines out.")


class BaselineMethods(Stage[BaselineOptions, "BaselinesBeside | None"]):
    """Asks the simplest methods, and gives what they see; None where they were left out."""

    name = "baselines"
    what = "what the simplest methods see, beside the list of what differs"
    needs = ("train", "filter")
    after = ("graft",)
    Options = BaselineOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return asdict(self.options)

    def estimate(self, ctx: Context) -> Cost:
        if not self.options.baseline_memory:
            return Cost()
        pairs, width = num_pairs(ctx), sum(ctx.quantities.widths)
        return Cost(ctx.quantities.seconds(2 * width**2 * pairs), {"pairs": pairs})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.evaluation.baselines.comparing import (
            BaselineConfig,
            run_baselines_beside,
        )
        from sparsify_crosscoder.evaluation.top import source_labels

        if not self.options.baseline_memory:
            return Outcome({"left_out": "--baseline_memory 0"})
        if len(ctx.crosscoder.d_sources) != 2:
            return Outcome({"left_out": "they are of two models"})
        config = BaselineConfig(ctx.run.config.outlier_multiple, self.options.baseline_memory)
        rows = ctx.output(Filter).findings[:LISTED]
        try:
            found = run_baselines_beside(ctx.run, rows, ctx.device, config)
        except ValueError as error:  # texts of several harvests cannot be read again
            print(f"The simplest methods are left out: {error}")
            return Outcome({"left_out": str(error)}, identity={"left_out": str(error)})
        atomic_write_json(folder / FILE, found.to_dict())
        print(found.baselines.text(source_labels(ctx.crosscoder), 3))
        both = sum(bool(one.also) for one in found.beside.entries)
        return Outcome({"entries": len(found.baselines.entries), "both": both}, [folder / FILE])

    def output(self, ctx: Context, folder: Path, record: Record) -> BaselinesBeside | None:
        from sparsify_crosscoder.evaluation.baselines.beside import BaselinesBeside

        if "left_out" in record.result:
            return None
        kept = read_json(folder / FILE, dict, "Delete it, and the stage is done again.")
        return BaselinesBeside.of_dict(kept)
