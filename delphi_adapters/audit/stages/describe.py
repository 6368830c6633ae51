"""What latents are about, counted and computed, whoever judges later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import Context, NoOptions, Stage
from ..verification import VerificationOptions
from .cache import Cache
from .explain import ExplainOptions, choosing_inputs, latents_to_explain, num_explained

if TYPE_CHECKING:
    from ...explaining.descriptions import Descriptions


class Describe(Stage[NoOptions, "Descriptions"]):
    """Describes the latents that are to be explained, and the shared ones to compare them with."""

    name = "describe"
    what = "words and tokens of latents, counted and computed"
    needs = ("cache", "filter")
    after = ("null", "power")

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return {**choosing_inputs(ctx), "nulls": ctx.options(VerificationOptions).nulls}

    def estimate(self, ctx: Context) -> Cost:
        count = num_explained(ctx) + 2 * ctx.options(VerificationOptions).nulls
        # Each direction through an unembedding, and each model read once from the disk.
        seconds = sum(
            ctx.quantities.seconds(2 * count * model.unembedding, 4 * model.whole)
            for model in ctx.quantities.models
        )
        return Cost(seconds, {"latents": count})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from ...explaining.choosing import none_is_exclusive
        from ...explaining.descriptions import describe_run
        from ..shared_latents import shared_nulls

        chosen = latents_to_explain(ctx)
        asked = ctx.options(ExplainOptions).latents
        if asked in (["exclusive"], ["listed"]) and none_is_exclusive(ctx.crosscoder):
            others = " and those of listed differences" if asked == ["listed"] else ""
            print(
                "No latent of this crosscoder is exclusive: those that lean furthest towards one "
                f"model{others} are looked at, {len(chosen)} in all."
            )
        shared = [one for source in range(2) for one in shared_nulls(ctx, source)]
        described = describe_run(ctx.run, ctx.output(Cache), ctx.crosscoder, [*chosen, *shared])
        left_out = {ctx.run.ends[s].model: why for s, why in described.left_out.items()}
        return Outcome(
            {
                "latents": len(described.latents),
                "words": described.corpus_words,
                "left_out": left_out,
            },
            [described.save(folder)],
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> Descriptions:
        from ...explaining.descriptions import Descriptions

        return Descriptions.load(folder)
