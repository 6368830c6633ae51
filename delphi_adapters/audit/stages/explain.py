"""What latents stand for, and which of them matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.command_options import option

from ...clients.judge import NO_JUDGE
from ..outcome import CHARACTERS, Cost, Outcome
from ..runner import Record
from ..stage import JUDGE, Context, Stage
from ..verification import VerificationOptions
from .cache import Cache, alive
from .filter import Filter

if TYPE_CHECKING:
    from ...explaining.autointerp import Autointerp

TIMED = 4  # latents whose prompts an estimate of time looks at
LEFT_OUT = "no judge: no explanation was written"


@dataclass
class ExplainOptions:
    """Which latents are looked at."""

    latents: list[str] = option(["listed"], heading=JUDGE)
    """what to explain: 'listed', which are those that are exclusive by their norm and those of the
    first 20 differences in the list, whatever their kind; 'exclusive' alone, 'kept' by the filter,
    'all' or numbers (listed)"""

    explain_limit: int | None = option(None, heading=JUDGE)
    """a random sample of these, at most (all)"""

    def __post_init__(self):
        if self.explain_limit is not None and self.explain_limit < 1:
            raise ValueError("--explain_limit must be at least 1.")


@dataclass(frozen=True)
class Explained:
    """The latents that were looked at, and where it is kept what the judge says of them."""

    latents: list[int]
    autointerp: Autointerp
    """Explanations in the folder of this stage, scores in that of the next one."""

    compared: list[int]
    """Shared latents that are explained only so that what they are compared with is no better
    chosen; none without a judge."""

    @property
    def answered(self) -> list[int]:
        """Latents with an explanation and a flag; without a judge, all that are described."""
        return self._answered(self.latents)

    @property
    def to_test(self) -> list[int]:
        """These, and those of `compared` that are explained."""
        return sorted({*self.answered, *self._answered(self.compared)})

    def _answered(self, latents: list[int]) -> list[int]:
        if not self.autointerp.judged:
            return latents
        unexplained = set(self.autointerp.unexplained(latents))
        return [latent for latent in latents if latent not in unexplained]


class Explain(Stage[ExplainOptions, Explained]):
    """Explains and flags, and sorts what is flagged into categories; nothing without a judge."""

    name = "explain"
    what = "what latents stand for, and which of them matter"
    needs = ("cache", "filter")
    after = ("describe",)
    needs_judge = True
    Options = ExplainOptions

    def inputs(self, ctx: Context) -> dict[str, Any]:
        if not ctx.judged:
            return {"judge": NO_JUDGE, **choosing_inputs(ctx)}
        from ...explaining.autointerp import JudgingConfig

        nulls = ctx.options(VerificationOptions).nulls
        # What was explained by earlier versions, and with this many nulls, stays as it is.
        compared = {} if nulls == VerificationOptions.nulls else {"nulls": nulls}
        judging = asdict(JudgingConfig())
        return {**ctx.config.judge_inputs, **choosing_inputs(ctx), "judging": judging, **compared}

    def estimate(self, ctx: Context) -> Cost:
        from ...explaining.autointerp import JudgingConfig
        from ...explaining.flagging_prompt import few_shots, system_prompt

        fixed = len(system_prompt()) + sum(len(shot["content"]) for shot in few_shots(True))
        config = JudgingConfig()
        # Text and activations.
        shown = config.num_examples * config.example_ctx_len * CHARACTERS * 2
        return ctx.judge.cost([fixed + shown], num_tested(ctx), ctx.quantities)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        latents = latents_to_explain(ctx)
        if not ctx.judged:
            return Outcome({"latents": latents, "left_out": LEFT_OUT}, identity=latents)
        from ...explaining import flagging
        from ...judging.results import file_name

        autointerp, judge, compared = _autointerp(ctx, folder), ctx.judge, _compared(ctx, latents)
        both = [*latents, *compared]
        self._say_time(ctx, autointerp, autointerp.unexplained(both), len(both))
        judge.ask(autointerp.explain(judge.client, both, judge.at_once))
        judge.ask(autointerp.sort(judge.client, latents, judge.at_once))
        found = flagging.load_flags(folder)
        every = {latent: found[autointerp.name(latent)] for latent in both}
        flags = [every[latent] for latent in latents]
        failed = sum(one.status == "failed" and one.attempts > 0 for one in every.values())
        names = {file_name(autointerp.name(latent)) for latent in both}
        return Outcome(
            {
                "latents": latents,
                "compared": compared,
                "flags": dict(Counter(flag.status for flag in flags)),
                "harmful": sum(bool(flag.harmful) for flag in flags),
                "ledger": judge.ledger(),
            },
            [file for kind in ("flags", "categories") for file in named(folder / kind, names)],
            unfinished=f"{failed:,} latents got no answer" if failed else None,
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> Explained:
        found = record.result  # earlier versions explained none to compare with
        return Explained(found["latents"], _autointerp(ctx, folder), found.get("compared", []))

    def _say_time(self, ctx: Context, autointerp: Autointerp, todo: list[int], of: int) -> None:
        from ...clients import TransformersClient
        from ...clients.judge_time import say_time

        print(f"{of:,} latents to explain, {len(todo):,} of them not explained yet")
        if isinstance(ctx.judge.client, TransformersClient):
            sample = todo[:: max(len(todo) // TIMED, 1)][:TIMED]
            scale = len(todo) / max(len(sample), 1)
            what = f"explaining and scoring {len(todo):,} latents"
            say_time(ctx.judge.client, autointerp.prompts(sample), scale, what)


def choosing_inputs(ctx: Context) -> dict[str, Any]:
    """What says which latents are looked at."""
    seed = ctx.options(VerificationOptions).audit_seed
    return {**asdict(ctx.options(ExplainOptions)), "audit_seed": seed}


def latents_to_explain(ctx: Context) -> list[int]:
    """Latents that the options ask for and that fire, in order, no more than the limit.

    Raises ValueError where there is none, or one that the crosscoder does not have.
    """
    from ...explaining.choosing import chosen_latents, limited

    options = ctx.options(ExplainOptions)

    chosen = chosen_latents(options.latents, ctx.crosscoder, lambda: ctx.output(Filter))
    chosen = alive(ctx, chosen)
    if options.explain_limit is None:
        return chosen
    seed = ctx.options(VerificationOptions).audit_seed
    return limited(chosen, options.explain_limit, ctx.output(Filter).listed, seed)


def num_explained(ctx: Context) -> int:
    """Latents to look at, at most, before it is known which."""
    from ...explaining.choosing import FINDINGS

    options = ctx.options(ExplainOptions)
    if options.latents[0].isdecimal():
        count = len(options.latents)
    elif ctx.trained:
        from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive

        exclusive = sum(len(some) for some in called_exclusive(ctx.crosscoder))
        count = ctx.crosscoder.num_latents if options.latents == ["all"] else exclusive
    else:
        sae = ctx.training.sae
        count = sae.resolve_num_latents(ctx.quantities.widths)
        if options.latents != ["all"]:
            count = round(count * sum(getattr(sae, "exclusive_fractions", [0.0])))
    count += FINDINGS if options.latents == ["listed"] else 0
    return count if options.explain_limit is None else min(count, options.explain_limit)


def num_tested(ctx: Context) -> int:
    """Latents to explain and test, at most: those to look at, and shared ones beside them."""
    return num_explained(ctx) + 2 * 2 * ctx.options(VerificationOptions).nulls


def named(folder: Path, names: set[str]) -> list[Path]:
    """The files of a folder that have one of the names."""
    return sorted(file for file in folder.glob("[!.]*.json") if file.stem in names)


def _compared(ctx: Context, latents: list[int]) -> list[int]:
    """Shared latents of either source that may be compared with, in order, and not of these."""
    from ..shared_latents import shared_candidates

    candidates = {one for source in range(2) for one in shared_candidates(ctx, source)}
    return sorted(candidates - {*latents})


def _autointerp(ctx: Context, folder: Path) -> Autointerp:
    from ...explaining.autointerp import Autointerp

    return Autointerp(
        ctx.output(Cache),
        folder,
        run=ctx.run.path,
        judge=str(ctx.config.judge.judge),
        scores=ctx.out / "score",
    )
