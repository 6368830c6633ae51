"""What the list has where nothing is to be found: the share of it that is false."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hashing import hash_file
from sparsify_crosscoder.records import read_json

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import TEXTS, Context, Stage
from .filter import Filter, FilterOptions
from .harvest import num_pairs
from .train import training_cost

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.differences import NullCount

FILE = "error_rates.json"


@dataclass
class NullOptions:
    """Which pairs without what is looked for are compared, and how long they are trained."""

    null_kinds: list[str] | None = None
    """nulls to make, as --kinds of `sparsify-crosscoder null` (layer for two families, fine-tune
    for a model and its fine-tune)"""

    null_steps: int | None = None
    """steps to train each null; 0: none is made, and no error rate known (those of training)"""

    def __post_init__(self):
        from sparsify_crosscoder.evaluation.nulls.kinds import NULL_KINDS

        if self.null_steps is not None and self.null_steps < 0:
            raise ValueError("--null_steps must not be negative; 0 leaves the comparison out.")
        unknown = [kind for kind in self.null_kinds or () if kind not in NULL_KINDS]
        if unknown:
            known = ", ".join(NULL_KINDS)
            raise ValueError(f"--null_kinds are of {known}, not {', '.join(unknown)}.")


class NullFound(NamedTuple):
    """What is listed where nothing is to be found."""

    nulls: list[NullCount]
    rates: dict[int, dict[str, float]]
    """`q_value`, `low` and `high` of the entries of the list, by rank."""


class Null(Stage[NullOptions, "NullFound | None"]):
    """Makes nulls of the run, and gives what is listed of them; None where they were left out."""

    name = "null"
    what = "the same where nothing is to be found: the share of the list that is false"
    needs = ("harvest", "train", "filter")
    Options = NullOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        inputs = ctx.options(FilterOptions).inputs() | {"steps": self.options.null_steps}
        return inputs | ({"kinds": self.options.null_kinds} if self.options.null_kinds else {})

    def estimate(self, ctx: Context) -> Cost:
        if self.options.null_steps == 0:
            return Cost()
        kinds = len(self.options.null_kinds or ("one",))
        training = training_cost(ctx, self.options.null_steps or ctx.training.max_steps)
        size, quantities = ctx.quantities.models[0], ctx.quantities
        each = size.whole if quantities.to_the_end else size.read
        harvest = quantities.seconds(2 * 2 * each * num_pairs(ctx))
        return Cost(kinds * (training.seconds + harvest), {"nulls": kinds, **training.counts})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.evaluation.nulls.lists import (
            ListKind,
            counts_of,
            null_list,
            rates_of,
        )
        from sparsify_crosscoder.evaluation.nulls.making import NullConfig, make_null, nulls_of

        if self.options.null_steps == 0:
            return Outcome({"left_out": "--null_steps 0"})
        found = ctx.output(Filter).found
        kind = ListKind.of(found, ctx.crosscoder.num_latents)
        kinds = self.options.null_kinds or nulls_of(ctx.run)[-1:]
        if not kinds:
            return Outcome({"left_out": "no null goes with these places of the models"})
        lists, made = [], []
        for name in kinds:
            config = NullConfig(name, steps=self.options.null_steps)
            null = make_null(ctx.run, config, ctx.device, folder)
            lists.append(replace(null_list(null, kind, ctx.device), name=config.name))
            made.append(null.path / "summary.json")
        counts, rates = counts_of(lists), rates_of(found, lists)
        rows = zip(found["rows"], rates, strict=True)
        told = {
            "nulls": [one._asdict() for one in counts],
            "rates": {row["rank"]: rate._asdict() for row, rate in rows if rate is not None},
        }
        atomic_write_json(folder / FILE, told)
        for one in counts:
            print(f"{one.name}: {one.findings:,} of {one.tested:,} would be findings")
        return Outcome(
            {"nulls": told["nulls"]}, [folder / FILE, *made], identity=hash_file(folder / FILE)
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> NullFound | None:
        from sparsify_crosscoder.evaluation.differences import NullCount

        if "nulls" not in record.result:  # left out, or of an earlier version
            return None
        told = read_json(folder / FILE, dict, "Delete it, and the stage is done again.")
        rates = {int(rank): rate for rank, rate in told["rates"].items()}
        return NullFound([NullCount(**one) for one in told["nulls"]], rates)
