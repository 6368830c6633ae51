"""Whether shared latents do the same in both models."""

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
from ..audit.stages.stitch import Stitch

if TYPE_CHECKING:
    from sparsify_crosscoder.interventions.equivalence_found import Equivalences

FILE = "equivalence.json"
READ = 12  # texts
CONTROLS = 1


@dataclass
class EquivalenceOptions:
    """How many shared latents are ablated in both models."""

    equivalence_latents: int = 6
    """shared latents that are ablated in both models, those of the first listed differences before
    others, which are drawn; 0: none ({default})"""

    def __post_init__(self):
        if self.equivalence_latents < 0:
            raise ValueError("--equivalence_latents must not be negative; 0 leaves it out.")


class SharedEffects(Stage[EquivalenceOptions, "Equivalences | None"]):
    """Ablates shared latents, and gives what that does to both models; None where left out."""

    name = "equivalence"
    what = "whether shared latents do the same in both models"
    needs = ("train", "filter", "stitch")
    Options = EquivalenceOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return asdict(self.options)

    def estimate(self, ctx: Context) -> Cost:
        from sparsify_crosscoder.interventions.graft_text import MOST_PAIRS

        latents = self.options.equivalence_latents
        seconds, readings = 0.0, (1, 1 + CONTROLS)
        for one, variants in zip(ctx.quantities.models, readings, strict=False):
            behind = one.whole - one.unembedding - one.read
            each = 3 * one.read + (variants * latents + 2) * behind
            seconds += ctx.quantities.seconds(2 * each * READ * MOST_PAIRS)
        return Cost(seconds, {"latents": latents}) if latents else Cost()

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.harvest.model_files import ModelError
        from sparsify_crosscoder.interventions.equivalence import EquivalenceConfig, equivalence

        if not self.options.equivalence_latents:
            return Outcome({"left_out": "--equivalence_latents 0"})
        rows = ctx.output(Filter).findings
        listed = tuple(
            row["latent"] for row in rows if row["kind"] == "shared" and row["latent"] is not None
        )
        count = self.options.equivalence_latents
        config = EquivalenceConfig(
            count=count, texts=READ, controls=CONTROLS, first=listed[: -(-count // 2)]
        )
        maps = ctx.output(Stitch)
        try:
            found = equivalence(ctx.run, config, stitching=maps, device=ctx.device)
        except (ValueError, ModelError) as error:  # no heads, or too few firings in these texts
            print(f"Shared latents are not compared: {error}")
            return Outcome({"left_out": str(error)}, identity={"left_out": str(error)})
        atomic_write_json(folder / FILE, found.to_dict())
        print(found.text())
        return Outcome({"latents": len(found.latents)}, [folder / FILE])

    def output(self, ctx: Context, folder: Path, record: Record) -> Equivalences | None:
        from sparsify_crosscoder.interventions.equivalence_found import Equivalences

        if "left_out" in record.result:
            return None
        kept = read_json(folder / FILE, dict, "Delete it, and the stage is done again.")
        return Equivalences.of_dict(kept)
