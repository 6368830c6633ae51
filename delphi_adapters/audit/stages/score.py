"""Whether explanations tell a latent's texts from others (B.4.4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...clients.judge import NO_JUDGE
from ..outcome import CHARACTERS, Cost, Outcome
from ..runner import Record
from ..stage import Context, NoOptions, Stage
from .explain import LEFT_OUT, Explain, named, num_explained

if TYPE_CHECKING:
    from ...explaining.interpretability import Interpretability

REQUESTS = 4  # of a latent


class Score(Stage[NoOptions, "dict[str, Interpretability]"]):
    """Tests explanations; gives the decisions by the latents' names, none without a judge."""

    name = "score"
    what = "whether explanations tell texts apart"
    needs = ("explain",)
    needs_judge = True

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return ctx.config.judge_inputs if ctx.judged else {"judge": NO_JUDGE}

    def estimate(self, ctx: Context) -> Cost:
        from ...explaining.autointerp import JudgingConfig
        from ...explaining.flagging_prompt import system_prompt

        config = JudgingConfig()
        shown = config.n_examples_shown * config.example_ctx_len * CHARACTERS
        size = len(system_prompt()) // 2 + shown
        return ctx.judge.cost([size] * REQUESTS, num_explained(ctx), ctx.quantities)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        if not ctx.judged:
            return Outcome({"left_out": LEFT_OUT})
        from ...explaining import interpretability
        from ...judging.results import file_name

        judge, explained = ctx.judge, ctx.output(Explain)
        autointerp, latents = explained.autointerp, explained.answered
        judge.ask(autointerp.run(judge.client, latents, judge.at_once))
        found = interpretability.load(folder)
        decisions = [found[autointerp.name(latent)] for latent in latents]
        open_ones = sum(not one.final for one in decisions)
        names = {file_name(autointerp.name(latent)) for latent in latents}
        return Outcome(
            {
                "scored": sum(one.score is not None for one in decisions),
                "interpretable": sum(bool(one.interpretable) for one in decisions),
                "unanswered": sum(one.n_unanswered for one in decisions),
                "ledger": judge.ledger(),
            },
            named(folder / "interpretability", names),
            unfinished=f"{open_ones:,} latents got no answer" if open_ones else None,
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> dict[str, Interpretability]:
        if not ctx.judged:
            return {}
        from ...explaining import interpretability

        return interpretability.load(folder)
