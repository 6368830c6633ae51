"""Affine maps between the two residual streams."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.command_options import option

from ..outcome import Cost, Outcome
from ..runner import Record, fingerprint_path
from ..stage import BEGINNING, VERIFICATION, Context, Stage

if TYPE_CHECKING:
    from sparsify_crosscoder.interventions.stitching import Stitching


@dataclass
class StitchOptions:
    """What the maps are fitted to, or where they are."""

    stitching: Path | None = option(None, heading=BEGINNING)
    """what `sparsify-crosscoder stitch` made"""

    stitch_dataset: list[str] | None = option(None, heading=VERIFICATION, metavar="D")
    """text to fit the maps to (what lies behind --max_examples of the dataset)"""

    stitch_pairs: int = option(131_072, heading=VERIFICATION)
    """to fit ({default:,})"""

    stitch_held_out_pairs: int = option(8_192, heading=VERIFICATION)
    """to judge by ({default:,})"""


class Stitch(Stage[StitchOptions, "Stitching"]):
    """Fits the maps between both models, on text that the run did not train on."""

    name = "stitch"
    what = "affine maps between the two residual streams"
    needs = ("train",)
    after = ("score",)
    Options = StitchOptions

    def outside(self) -> dict[str, Any]:
        named = [self.options.stitching, *(self.options.stitch_dataset or [])]
        return {str(path): fingerprint_path(path) for path in named if path is not None}

    def inputs(self, ctx: Context) -> dict[str, Any]:
        if self.options.stitching is not None:
            return {"given": str(self.options.stitching.resolve())}
        names = ("stitch_dataset", "stitch_pairs", "stitch_held_out_pairs")
        return {name: getattr(self.options, name) for name in names}

    def estimate(self, ctx: Context) -> Cost:
        if self.options.stitching is not None:
            return Cost()
        pairs = self.options.stitch_pairs + self.options.stitch_held_out_pairs
        operations = sum(2 * model.read for model in ctx.quantities.models) * pairs
        return Cost(ctx.quantities.seconds(operations), {"pairs": pairs})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        place, outputs = self._place(folder), []
        if self.options.stitching is None:
            _fit(ctx, self.options, place)
            outputs = sorted(place.iterdir())
        stitching = self._load(folder)
        if self.options.stitching is not None:
            stitching.check_sources(ctx.crosscoder.sources)
        config = json.loads((place / "cfg.json").read_text(encoding="utf-8"))
        return Outcome({"report": stitching.report}, outputs, identity=config["sha256"])

    def output(self, ctx: Context, folder: Path, record: Record) -> Stitching:
        return self._load(folder)

    def _place(self, folder: Path) -> Path:
        return self.options.stitching or folder / "stitching"

    def _load(self, folder: Path) -> Stitching:
        from sparsify_crosscoder.interventions.stitching import Stitching

        return Stitching.load(self._place(folder))


def _fit(ctx: Context, options: StitchOptions, place: Path) -> None:
    from sparsify_crosscoder.interventions.stitch import StitchText, stitch, stitching_text

    text = StitchText(
        options.stitch_dataset or (),
        ctx.run.config.split,
        pairs=options.stitch_pairs,
        held_out_pairs=options.stitch_held_out_pairs,
    )
    print(stitching_text(stitch(ctx.run, text=text, out=place, device=ctx.device)))
