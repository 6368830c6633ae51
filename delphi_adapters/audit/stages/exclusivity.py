"""Whether latents do in their own model what they do not do in the other (B.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..outcome import CHARACTERS, Cost, Outcome
from ..runner import Record, fingerprint_path
from ..stage import VERIFICATION, Context, Stage
from ..verification import ChosenCounts, VerificationOptions
from .explain import num_explained
from .stitch import why_no_maps

if TYPE_CHECKING:
    from ...judging.exclusivity import Exclusivity as Scored
    from ..directions import Direction, Why
    from ..likeness import DirectionLikeness
    from ..steered import BothSteered

STEERED = "steered"
PROMPT_TOKENS = 40  # with a chat template


class Listed(NamedTuple):
    """A direction that was verified."""

    name: str
    why: Why
    source: int
    latent: int | None
    """None of a random one."""


class Paid(NamedTuple):
    """What an API took for its answers, those of earlier starts included."""

    dollars: float
    requests: int


@dataclass(frozen=True)
class Verified:
    """What was verified: how it was chosen, and what a judge or a measurement says of it."""

    chosen: ChosenCounts

    scored: list[tuple[Listed, Scored]]
    """With a judge: what it says of every direction."""

    measured: list[DirectionLikeness]
    """Without one: what was measured of every direction."""

    paid: Paid | None
    """None for a local judge, or none."""

    folder: Path

    left_out: str | None = None
    """Why nothing was steered, where there is no map between the models."""

    def of_latents(self) -> dict[int, Scored]:
        """What the judge said of latents; a random direction has none."""
        return {one.latent: scored for one, scored in self.scored if one.latent is not None}

    def steered(self, name: str) -> BothSteered:
        """What both models answered to a direction; with a judge only."""
        from ..steered import read_steered

        return read_steered(self.folder / STEERED, name)


class Exclusivity(Stage[VerificationOptions, Verified]):
    """Steers both models with every direction, and has the answers judged.

    Without a judge nothing is written: what steering does to the next words is compared.
    """

    name = "exclusivity"
    what = "whether what a latent does survives in the other model"
    needs = ("filter", "score", "stitch")
    Options = VerificationOptions
    group = VERIFICATION

    def outside(self) -> dict[str, Any]:
        file = self.options.prompts_file
        return {} if file is None else {str(file): fingerprint_path(file)}

    def inputs(self, ctx: Context) -> dict[str, Any]:
        options = self.options
        names = ("verify", "sample", "nulls", "audit_seed", "chat")
        drawn = {name: getattr(options, name) for name in names}
        asked = {"prompts": options.read_prompts(), "strengths": options.strengths}
        if not ctx.judged:
            return {"judge": ctx.config.judge.judge, **drawn, **asked}
        drawn["no_blinded"] = options.no_blinded
        return {
            **ctx.config.judge_inputs,
            **drawn,
            **asked,
            "sampling": asdict(options.sampling),
        }

    def estimate(self, ctx: Context) -> Cost:
        from ...judging.exclusivity import SteeredAnswers, requests

        options, quantities = self.options, ctx.quantities
        prompts, strengths = options.read_prompts(), list(options.strengths)
        directions = min(options.verify + options.sample, num_explained(ctx))
        directions += 2 * 2 * options.nulls
        if not ctx.judged:
            rows = len(prompts) * (len(strengths) - 1) * directions
            whole = sum(2 * model.whole for model in quantities.models)
            return Cost(
                quantities.seconds(whole * rows * PROMPT_TOKENS), {"directions": directions}
            )
        text = "word " * (options.max_new_tokens * CHARACTERS // 5)
        answers = [[text] * len(strengths)] * len(prompts)
        steered = SteeredAnswers(prompts, strengths, answers, answers)
        asked = requests(steered, blinded=not options.no_blinded)
        sizes = [sum(len(message["content"]) for message in one) for one in asked]
        steps = options.max_new_tokens * directions
        tokens = len(prompts) * len(strengths) * steps
        # Writing, then reading what was written to measure it.
        steering = quantities.writing(tokens, steps, passes=3)
        asking = ctx.judge.cost(sizes, directions, quantities)
        counts = {"directions": directions, "tokens to write": 2 * tokens, **asking.counts}
        return Cost(steering + asking.seconds, counts)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from ..directions import directions_to_verify

        chosen = directions_to_verify(ctx)
        if (why := why_no_maps(ctx)) is not None:
            counts = replace(chosen.counts, verified=0, sample=0)
            left_out = {"directions": [], "ledger": None, "left_out": why}
            return Outcome({**asdict(counts), **left_out}, identity=left_out)
        if not ctx.judged:
            from ..likeness import measure_likeness, save_likeness

            place = save_likeness(measure_likeness(ctx, chosen.directions), folder)
            return Outcome({**chosen.facts(), "ledger": None}, [place])
        from ...judging.results import file_name
        from ..steered import steer

        for source in range(2):
            steer(ctx, folder / STEERED, chosen.directions, source)
        results = _judged(ctx, folder, chosen.directions)
        failed = sum(not _settled(one) for one in results.values())
        return Outcome(
            {**chosen.facts(), "ledger": ctx.judge.ledger()},
            [folder / "exclusivity" / f"{file_name(name)}.json" for name in results],
            unfinished=f"{failed:,} directions got no answer" if failed else None,
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> Verified:
        from ...judging import exclusivity as exclusivity_files
        from ..likeness import load_likeness

        found, scored, measured = record.result, [], []
        chosen = ChosenCounts(
            **{one.name: found[one.name] for one in fields(ChosenCounts) if one.name in found}
        )
        if "left_out" in found:
            return Verified(chosen, [], [], None, folder, found["left_out"])
        if ctx.judged:
            results = exclusivity_files.load(folder)
            listed = [Listed(**one) for one in found["directions"]]
            scored = [(one, results[one.name]) for one in listed]
        else:
            measured = load_likeness(folder)
        return Verified(chosen, scored, measured, _paid(found["ledger"]), folder)


def _paid(ledger: Mapping[str, Any] | None) -> Paid | None:
    if ledger is None:
        return None
    dollars = sum(ledger[name] for name in ("spent", "earlier", "uncertain"))
    return Paid(dollars, sum(ledger["outcomes"].values()))


def _judged(ctx: Context, folder: Path, directions: Sequence[Direction]) -> dict[str, Scored]:
    import asyncio

    from ...clients.judge_time import say_time
    from ...judging import exclusivity as exclusivity_files
    from ...judging.exclusivity import ExclusivityJudge, requests
    from ...progress import progress
    from ..steered import read_steered

    blinded, asked = not ctx.options(VerificationOptions).no_blinded, ctx.judge
    judge = ExclusivityJudge(asked.client, blinded=blinded)
    before = exclusivity_files.load(folder)
    todo = [one for one in directions if not _settled(before.get(one.name))]

    async def all_of_them() -> None:
        slots = asyncio.Semaphore(asked.at_once)

        async def one_of_them(one: Direction) -> None:
            async with slots:
                answers = read_steered(folder / STEERED, one.name).answers()
                result = await judge(one.name, one.kind, one.source, answers)
                exclusivity_files.save(result, folder)
                bar.update()

        async with progress(len(todo), "Judging steered answers", "direction") as bar:
            await asyncio.gather(*map(one_of_them, todo))

    if todo:
        prompts = requests(read_steered(folder / STEERED, todo[0].name).answers(), blinded=blinded)
        say_time(asked.client, prompts, len(todo), f"rating {len(todo):,} directions")
        asked.ask(all_of_them())
    found = exclusivity_files.load(folder)
    return {one.name: found[one.name] for one in directions}


def _settled(result: Scored | None) -> bool:
    """Whether the judge answered, be it unreadably."""
    if result is None:
        return False
    asked = [r for p in result.prompts for r in (p.interpretability, p.similarity, p.blinded)]
    return all(rating.status != "failed" for rating in asked if rating is not None)
