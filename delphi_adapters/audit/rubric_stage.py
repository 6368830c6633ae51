"""How far the most exclusive latents move both models on a rubric's questions (B.5.2 to B.5.6)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.command_parts import CHAT
from sparsify_crosscoder.records import read_json

from ..judging import exclusivity as exclusivity_files
from ..judging.results import file_name
from ..judging.rubric_answers import SteeredModel, Writing, rate_steered
from ..judging.rubric_runs import RubricResult
from ..judging.rubrics import Rubric
from ..report.data import Curve
from .directions import Direction, directions_to_verify, load_stitching
from .explain_stages import at_once, judge_inputs, ledger
from .stages import Outcome
from .workspace import Workspace

RESULT = "result.json"


class _Dimension(TypedDict):
    curves: dict[str, dict[str, list[float | None]]]


class _Curves(TypedDict):
    """What of a rubric's result the report draws."""

    dimensions: dict[str, _Dimension]


def rubric_inputs(work: Workspace) -> dict[str, Any]:
    if not work.args.rubrics:
        return {"rubrics": []}
    return {
        **judge_inputs(work),
        "rubrics": [Rubric.load(one).to_dict() for one in work.args.rubrics],
        "rubric_features": work.args.rubric_features,
        "chat": work.args.chat,
    }


def rubrics(work: Workspace, folder: Path) -> Outcome:
    """Steer both models with the most exclusive latents on every rubric's prompts, and rate it."""
    if not work.args.rubrics:
        return Outcome()
    results = exclusivity_files.load(work.folder("exclusivity"))
    by_name = {one.name: one for one in directions_to_verify(work)[0]}
    ranked = exclusivity_files.rank(one for one in results.values() if one.name in by_name)
    chosen = [one.name for one in ranked if one.kind == "feature"][: work.args.rubric_features]
    rated, failed = [], 0
    for asked in work.args.rubrics:
        rubric = Rubric.load(asked)
        for name in chosen:
            place = folder / rubric.name / file_name(name)
            result = _rated(work, rubric, by_name[name], place)
            atomic_write_json(place / RESULT, result.to_dict())
            rated.append({"rubric": rubric.name, "latent": name})
            failed += sum(counts["failed"] for counts in result.counts().values())
    return Outcome(
        {"rated": rated, "ledger": ledger(work) if rated else None},
        [folder / one["rubric"] / file_name(one["latent"]) / RESULT for one in rated],
        unfinished=f"{failed:,} answers got no rating" if failed else None,
    )


def rubric_curves(work: Workspace, name: str) -> list[Curve]:
    """The curves of a latent, of every rubric that it was rated by."""
    found = []
    for one in work.records["rubrics"].result.get("rated", []):
        if one["latent"] != name:
            continue
        path = work.folder("rubrics") / one["rubric"] / file_name(name) / RESULT
        result = read_json(path, _Curves, "Delete it, and the stage is done again.")
        for dimension, values in result["dimensions"].items():
            for model, curve in values["curves"].items():
                rows = zip(*(curve[k] for k in ("strengths", "mean", "low", "high")), strict=True)
                known = [row for row in rows if row[1] is not None]
                if known:
                    strengths, mean, low, high = map(list, zip(*known, strict=True))
                    label = f"{one['rubric']}: {dimension}".replace("_", " ").lower()
                    found.append(Curve(model, label, strengths, mean, low, high))
    return found


def _rated(work: Workspace, rubric: Rubric, direction: Direction, folder: Path) -> RubricResult:
    """Answers of both models, the direction's own first, and what the judge makes of them."""
    models: dict[str, SteeredModel] = {}
    for source in (direction.source, 1 - direction.source):
        own = source == direction.source
        hookpoint = work.ends[source].hookpoint
        stitched = None if own else direction.stitched(hookpoint, load_stitching(work))
        label = work.model_name(source) + ("" if own else ", stitched")
        models[label] = SteeredModel(
            partial(work.language_model, source),
            [stitched or direction.steering(hookpoint)],
            folder / ("original" if own else "partner"),
            f"{rubric.name}, {label}",
        )
    writing = Writing(CHAT[work.args.chat], work.args.generation_batch_size)
    return rate_steered(work.client, rubric, models, folder, writing, at_once(work))
