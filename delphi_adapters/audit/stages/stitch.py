"""Affine maps between the two residual streams: the identity where both share a basis."""

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
    """text to fit the maps to (none where the models share a basis, as a model and its fine-tune
    do: the map is the identity; else what lies behind --max_examples of the dataset)"""

    stitch_pairs: int = option(131_072, heading=VERIFICATION)
    """to fit ({default:,})"""

    stitch_held_out_pairs: int = option(8_192, heading=VERIFICATION)
    """to judge by ({default:,})"""

    @property
    def asked(self) -> bool:
        """Whether maps are named, or text to fit them to."""
        return self.stitching is not None or bool(self.stitch_dataset)


class Stitch(Stage[StitchOptions, "Stitching | None"]):
    """Gives the maps between both models, fitted on text that the run did not train on.

    Where both share a basis, as the run's own pairs tell, the map is the identity and no text is
    needed. Gives None where there is too little text to fit to.
    """

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
        first, second = ctx.quantities.models
        # Models of one shape, read at one depth, are taken to share a basis before it is measured.
        if self.options.stitching is not None or (not self.options.asked and first == second):
            return Cost()
        pairs = self.options.stitch_pairs + self.options.stitch_held_out_pairs
        operations = 2 * (first.read + second.read) * pairs
        return Cost(ctx.quantities.seconds(operations), {"pairs": pairs})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.interventions.unseen_text import TooLittleText

        place, outputs = self._place(folder), []
        if self.options.stitching is None:
            try:
                _make(ctx, self.options, place)
            except TooLittleText as error:
                why = (
                    f"{error.found} Name text with --stitch_dataset, or lower --stitch_pairs or "
                    "--stitch_held_out_pairs."
                )
                print(f"No maps between the models, so that nothing is steered: {why}")
                return Outcome({"left_out": why}, identity={"left_out": why})
            outputs = sorted(place.iterdir())
        stitching = self._load(folder)
        if self.options.stitching is not None:
            stitching.check_sources(ctx.crosscoder.sources)
        config = json.loads((place / "cfg.json").read_text(encoding="utf-8"))
        return Outcome({"report": stitching.report}, outputs, identity=config["sha256"])

    def output(self, ctx: Context, folder: Path, record: Record) -> Stitching | None:
        return None if "left_out" in record.result else self._load(folder)

    def _place(self, folder: Path) -> Path:
        return self.options.stitching or folder / "stitching"

    def _load(self, folder: Path) -> Stitching:
        from sparsify_crosscoder.interventions.stitching import Stitching

        return Stitching.load(self._place(folder))


def why_no_maps(ctx: Context) -> str | None:
    """Why there is no map between the models, in words; None where there is one."""
    return ctx.records[Stitch.name].result.get("left_out")


def maps_of(ctx: Context) -> Stitching:
    """The maps between the models. Raises LookupError where `why_no_maps` says why not."""
    if (found := ctx.output(Stitch)) is None:
        raise LookupError(f"There is no map between the models: {why_no_maps(ctx)}")
    return found


def _make(ctx: Context, options: StitchOptions, place: Path) -> None:
    from sparsify_crosscoder.interventions.basis import identity_line, measured_identity
    from sparsify_crosscoder.interventions.stitch import StitchText, stitch, stitching_text

    identity = None
    if not options.asked:
        identity = measured_identity(ctx.run, ctx.crosscoder.sources, ctx.device)
    if identity is not None:
        identity.save(place)
        print(identity_line(ctx.model_name(0), ctx.model_name(1), identity.report["r2"]))
        return
    text = StitchText(
        options.stitch_dataset or (),
        ctx.run.config.split,
        pairs=options.stitch_pairs,
        held_out_pairs=options.stitch_held_out_pairs,
    )
    print(stitching_text(stitch(ctx.run, text=text, out=place, device=ctx.device)))
