"""How much of two near-equal models' divergence latents account for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json

from ..audit.outcome import Cost, Outcome
from ..audit.runner import Record
from ..audit.stage import TEXTS, Context, Stage
from ..audit.stages.filter import FilterOptions

FILE = "patch.json"
TEXT_COUNT = 12
GROUPS = 8  # of latents, and the whole difference


@dataclass
class PatchOptions:
    """How many listed differences are patched one at a time."""

    patch_entries: int = 3
    """listed differences of models with one basis and vocabulary that are patched one at a time,
    each beside random clusters, and all latents by kind; 0: none ({default})"""

    patch_random: int = 3
    """random clusters beside each of them ({default})"""

    def __post_init__(self):
        if self.patch_entries < 0 or self.patch_random < 0:
            raise ValueError("--patch_entries and --patch_random must not be negative.")


class Patch(Stage[PatchOptions, "dict[str, Any] | None"]):
    """Lets latents of near-equal models write in one what they write in the other.

    Gives which share of the divergence that restores, as `Patched.to_dict`; None where it was left
    out, as for models without a common basis.
    """

    name = "patch"
    what = "how much of near-equal models' divergence latents account for"
    needs = ("train", "filter")
    after = ("graft",)
    Options = PatchOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return asdict(self.options)

    def estimate(self, ctx: Context) -> Cost:
        from sparsify_crosscoder.interventions.graft_text import MOST_PAIRS

        first, second, *_ = ctx.quantities.models
        if not self.options.patch_entries or first != second:
            return Cost()
        tokens, seconds = TEXT_COUNT * MOST_PAIRS, 0.0
        entries = self.options.patch_entries * (1 + self.options.patch_random)
        for one, variants in ((first, GROUPS), (second, GROUPS + entries)):
            behind = one.whole - one.unembedding - one.read
            each = 3 * one.read + (variants + 2) * behind + (variants + 1) * one.unembedding
            seconds += ctx.quantities.seconds(2 * each * tokens)
        return Cost(seconds, {"texts": TEXT_COUNT})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.harvest.model_files import ModelError
        from sparsify_crosscoder.interventions.basis import may_share_basis
        from sparsify_crosscoder.interventions.patch import PatchConfig, patch

        if not self.options.patch_entries:
            return Outcome({"left_out": "--patch_entries 0"})
        sources = ctx.crosscoder.sources
        if len(sources) != 2 or not may_share_basis(sources, 0, 1):
            return Outcome({"left_out": "the models do not share a basis"})
        config = PatchConfig(TEXT_COUNT, self.options.patch_entries, self.options.patch_random)
        try:
            found = patch(ctx.run, _differences(ctx), config)
        except (ValueError, ModelError) as error:  # no heads, or no common basis after all
            print(f"Nothing is patched: {error}")
            return Outcome({"left_out": str(error)}, identity={"left_out": str(error)})
        if not found.near:
            return Outcome({"left_out": "the models do not share a vocabulary"})
        atomic_write_json(folder / FILE, found.to_dict())
        print(found.text())
        return Outcome({"texts": found.texts}, [folder / FILE])

    def output(self, ctx: Context, folder: Path, record: Record) -> dict[str, Any] | None:
        if "left_out" in record.result:
            return None
        return read_json(folder / FILE, dict, "Delete it, and the stage is done again.")


def _differences(ctx: Context) -> Any:
    """The list of the filter, with directions, which its file does not have."""
    from sparsify_crosscoder.evaluation.differences import crosscoder_differences
    from sparsify_crosscoder.interventions.difference_causes import prompts_kept_out

    options, kept_out = ctx.options(FilterOptions), {}
    if options.verify_differences:
        with suppress(ValueError):
            kept_out = prompts_kept_out(ctx.run, ctx.crosscoder, "--verify_differences")
    config = options.config(ctx.run.config.outlier_multiple)
    return crosscoder_differences(ctx.run, ctx.crosscoder, config, leave_out=[*kept_out])
