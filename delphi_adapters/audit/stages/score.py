"""Whether explanations tell a latent's texts from others (B.4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.command_options import option

from ...clients.judge import NO_JUDGE
from ..outcome import CHARACTERS, Cost, Outcome
from ..runner import Record
from ..stage import JUDGE, Context, Stage
from .explain import LEFT_OUT, Explain, named, num_tested

if TYPE_CHECKING:
    from ...explaining.interpretability import Interpretability

KEPT = ("interpretability", "held_out")


@dataclass
class ScoreOptions:
    """How explanations are tested."""

    no_held_out: bool = option(False, heading=JUDGE)
    """explanations that pass the detection test are not tested on weaker passages, which they were
    not written from"""


class Score(Stage[ScoreOptions, "dict[str, Interpretability]"]):
    """Tests explanations; gives the decisions by the latents' names, none without a judge."""

    name = "score"
    what = "whether explanations tell texts apart"
    needs = ("explain",)
    needs_judge = True
    Options = ScoreOptions

    def inputs(self, ctx: Context) -> dict[str, Any]:
        if not ctx.judged:
            return {"judge": NO_JUDGE}
        left_out = {"no_held_out": True} if self.options.no_held_out else {}
        return ctx.config.judge_inputs | left_out

    def estimate(self, ctx: Context) -> Cost:
        from ...explaining.autointerp import JudgingConfig
        from ...explaining.flagging_prompt import system_prompt
        from ...explaining.held_out import PASSAGES

        config = JudgingConfig()
        shown = config.n_examples_shown * config.example_ctx_len * CHARACTERS
        size = len(system_prompt()) // 2 + shown
        examples = config.n_top + config.n_random
        if not self.options.no_held_out:  # at most: of those that pass
            examples += 2 * PASSAGES + config.n_random
        requests = examples // config.n_examples_shown
        return ctx.judge.cost([size] * requests, num_tested(ctx), ctx.quantities)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        if not ctx.judged:
            return Outcome({"left_out": LEFT_OUT})
        from ...explaining import held_out, interpretability
        from ...judging.results import file_name

        judge, explained = ctx.judge, ctx.output(Explain)
        autointerp, latents = explained.autointerp, explained.to_test
        weaker = not self.options.no_held_out
        judge.ask(autointerp.run(judge.client, latents, judge.at_once, weaker))
        held = held_out.load(folder)
        found = interpretability.load(folder)
        decisions = [found[autointerp.name(latent)] for latent in latents]
        open_ones = len(autointerp.pending(latents, weaker))
        names = {file_name(autointerp.name(latent)) for latent in latents}
        return Outcome(
            {
                "scored": sum(one.score is not None for one in decisions),
                "interpretable": sum(bool(one.interpretable) for one in decisions),
                "held_out": sum(one.next_ranks is not None for one in held.values()),
                "unanswered": sum(one.n_unanswered for one in decisions),
                "ledger": judge.ledger(),
            },
            [file for kind in KEPT for file in named(folder / kind, names)],
            unfinished=f"{open_ones:,} latents got no answer" if open_ones else None,
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> dict[str, Interpretability]:
        if not ctx.judged:
            return {}
        from ...explaining import interpretability

        return interpretability.load(folder)
