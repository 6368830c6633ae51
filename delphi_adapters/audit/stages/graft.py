"""The crosscoder's reconstruction in place of the models' activations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import TEXTS, Context, Stage
from .filter import Filter

FILE = "graft.json"
VARIANTS = 6  # reconstruction, zero, mean, and without exclusive, kept and shared latents


@dataclass
class GraftOptions:
    """How much text the reconstruction is tried on."""

    graft_texts: int = 24
    """texts that are read with the reconstruction in place of the activation; 0: none
    ({default})"""

    def __post_init__(self):
        if self.graft_texts < 0 or self.graft_texts == 1:
            raise ValueError("--graft_texts must be 2 or more, for an interval; 0 leaves it out.")


class Graft(Stage[GraftOptions, "dict[str, Any] | None"]):
    """Reads held-out text with the reconstruction in place of each model's activation.

    Gives what that does to next tokens, as `Grafted.to_dict`; None where it was left out.
    """

    name = "graft"
    what = "the reconstruction in place of the activation: what the models lose by it"
    needs = ("train", "filter")
    after = ("score",)
    Options = GraftOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return asdict(self.options)

    def estimate(self, ctx: Context) -> Cost:
        from sparsify_crosscoder.interventions.graft_text import MOST_PAIRS

        if not self.options.graft_texts:
            return Cost()
        tokens = self.options.graft_texts * MOST_PAIRS
        seconds = 0.0
        for one in ctx.quantities.models:
            behind = one.whole - one.unembedding - one.read
            each = 3 * one.read + (VARIANTS + 2) * behind + (VARIANTS + 1) * one.unembedding
            seconds += ctx.quantities.seconds(2 * each * tokens)
        return Cost(seconds, {"texts": self.options.graft_texts})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.harvest.model_files import ModelError
        from sparsify_crosscoder.interventions.graft import GraftConfig, Headless, graft

        if not self.options.graft_texts:
            return Outcome({"left_out": "--graft_texts 0"})
        config = GraftConfig(self.options.graft_texts)
        try:
            found = graft(ctx.run, config, kept=ctx.output(Filter).kept, device=ctx.device)
        except (Headless, ModelError) as error:
            print(f"Nothing is grafted: {error}")
            return Outcome({"left_out": str(error)}, identity={"left_out": str(error)})
        atomic_write_json(folder / FILE, found.to_dict())
        print(found.text())
        return Outcome({"texts": found.texts}, [folder / FILE])

    def output(self, ctx: Context, folder: Path, record: Record) -> dict[str, Any] | None:
        if "left_out" in record.result:
            return None
        return read_json(folder / FILE, dict, "Delete it, and the stage is done again.")
