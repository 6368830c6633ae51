"""How far the most exclusive latents move both models on a rubric's questions (B.5.2 to B.5.6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sparsify_crosscoder.command_options import option
from sparsify_crosscoder.files import atomic_write_json

from ..outcome import CHARACTERS, Cost, Outcome
from ..runner import Record, fingerprint_path
from ..stage import VERIFICATION, Context, Stage
from ..verification import VerificationOptions
from .exclusivity import Exclusivity
from .explain import num_explained
from .stitch import maps_of

if TYPE_CHECKING:
    from ...judging.rubric_runs import RubricResult
    from ...judging.rubrics import Rubric
    from ..directions import Direction

RESULT = "result.json"


@dataclass
class RubricsOptions:
    """What is rated, of how many latents."""

    rubrics: list[str] = option([], heading=VERIFICATION)
    """rubrics, by name or file"""

    rubric_features: int = option(3, heading=VERIFICATION)
    """most exclusive latents for them ({default})"""


class RatedCurve(TypedDict):
    """A dimension's mean at each strength; None where no rating could be read."""

    strengths: list[float]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


class _Dimension(TypedDict):
    curves: dict[str, RatedCurve]


class _Curves(TypedDict):
    dimensions: dict[str, _Dimension]


@dataclass(frozen=True)
class Rated:
    """What a rubric says of a latent."""

    rubric: str
    latent: str
    """delphi's name."""

    curves: dict[str, dict[str, RatedCurve]]
    """By dimension and model."""


class Rubrics(Stage[RubricsOptions, list[Rated]]):
    """Steers both models with the most exclusive latents on a rubric's prompts, and rates that."""

    name = "rubrics"
    what = "how far latents move both models on given questions"
    needs = ("exclusivity",)
    Options = RubricsOptions

    def check(self, *, judged: bool) -> None:
        if self.options.rubrics and not judged:
            raise ValueError("--rubrics are rated by a judge: name one with --judge.")

    def outside(self) -> dict[str, Any]:
        return {str(path): fingerprint_path(path) for path in self.options.rubrics}

    def inputs(self, ctx: Context) -> dict[str, Any]:
        if not self.options.rubrics:
            return {"rubrics": []}
        return {
            **ctx.config.judge_inputs,
            "rubrics": [rubric.to_dict() for rubric in self._rubrics()],
            "rubric_features": self.options.rubric_features,
            "chat": ctx.options(VerificationOptions).chat,
        }

    def estimate(self, ctx: Context) -> Cost:
        features = min(self.options.rubric_features, num_explained(ctx))
        seconds, total = 0.0, {}
        for rubric in self._rubrics():
            size = rubric.sampling.max_new_tokens
            answer = "word " * (size * CHARACTERS // 5)
            rows = len(rubric.prompts) * len(rubric.strengths) * features
            asked = [message["content"] for message in rubric.messages(rubric.prompts[0], answer)]
            asking = ctx.judge.cost([sum(map(len, asked))], 2 * rows, ctx.quantities)
            # All strengths of a prompt at once.
            writing = ctx.quantities.writing(rows * size, rows / 10 * size)
            seconds += asking.seconds + writing
            counts = {**asking.counts, "tokens to write": 2 * rows * size}
            total = {name: total.get(name, 0) + (count or 0) for name, count in counts.items()}
        return Cost(seconds, total)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        if not self.options.rubrics:
            return Outcome()
        from ...judging.exclusivity import rank
        from ...judging.results import file_name
        from ..directions import directions_to_verify

        by_name = {one.name: one for one in directions_to_verify(ctx).directions}
        ranked = rank(result for _, result in ctx.output(Exclusivity).scored)
        most = self.options.rubric_features
        chosen = [one.name for one in ranked if one.kind == "feature"][:most]
        rated, failed = [], 0
        for rubric in self._rubrics():
            for name in chosen:
                place = folder / rubric.name / file_name(name)
                result = _rated(ctx, rubric, by_name[name], place)
                atomic_write_json(place / RESULT, result.to_dict())
                rated.append({"rubric": rubric.name, "latent": name})
                failed += sum(counts["failed"] for counts in result.counts().values())
        return Outcome(
            {"rated": rated, "ledger": ctx.judge.ledger() if rated else None},
            [folder / one["rubric"] / file_name(one["latent"]) / RESULT for one in rated],
            unfinished=f"{failed:,} answers got no rating" if failed else None,
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> list[Rated]:
        from sparsify_crosscoder.records import read_json

        from ...judging.results import file_name

        found = []
        for one in record.result.get("rated", []):
            path = folder / one["rubric"] / file_name(one["latent"]) / RESULT
            result = read_json(path, _Curves, "Delete it, and the stage is done again.")
            curves = {name: values["curves"] for name, values in result["dimensions"].items()}
            found.append(Rated(one["rubric"], one["latent"], curves))
        return found

    def _rubrics(self) -> list[Rubric]:
        from ...judging.rubrics import Rubric

        return [Rubric.load(one) for one in self.options.rubrics]


def _rated(ctx: Context, rubric: Rubric, direction: Direction, folder: Path) -> RubricResult:
    """Answers of both models, the direction's own first, and what the judge makes of them."""
    from ...judging.rubric_answers import SteeredModel, Writing, rate_steered

    models: dict[str, SteeredModel] = {}
    for source in (direction.source, 1 - direction.source):
        own = source == direction.source
        hookpoint = ctx.run.ends[source].hookpoint
        stitched = None if own else direction.stitched(hookpoint, maps_of(ctx))
        label = ctx.model_name(source) + ("" if own else ", stitched")
        models[label] = SteeredModel(
            partial(ctx.language_model, source),
            [stitched or direction.steering(hookpoint)],
            folder / ("original" if own else "partner"),
            f"{rubric.name}, {label}",
        )
    options, judge = ctx.options(VerificationOptions), ctx.judge
    writing = Writing(options.as_messages, options.generation_batch_size)
    return rate_steered(judge.client, rubric, models, folder, writing, judge.at_once)
