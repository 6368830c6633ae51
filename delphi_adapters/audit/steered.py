"""What both models answer while directions steer them, kept by direction."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from tqdm.auto import tqdm

from sparsify_crosscoder.files import atomic_write_json, remove_leftovers
from sparsify_crosscoder.interventions.effects import dose_response
from sparsify_crosscoder.interventions.generation import Answering
from sparsify_crosscoder.records import read_json

from ..judging.exclusivity import SteeredAnswers
from ..judging.results import file_name
from .directions import Direction
from .stage import Context
from .stages.stitch import maps_of
from .verification import VerificationOptions

Role = Literal["original", "partner"]


class Steered(TypedDict):
    """What the answers of one model to one direction are kept as."""

    model: str
    prompts: list[str]
    strengths: list[float]
    answers: list[list[str]]
    measures: dict[str, list[list[Any]]]


class BothSteered(NamedTuple):
    """The answers of the model that a direction is from, and of the one it is carried over to."""

    original: Steered
    partner: Steered

    def answers(self) -> SteeredAnswers:
        """The same for a judge."""
        first = self.original
        return SteeredAnswers(
            first["prompts"], first["strengths"], first["answers"], self.partner["answers"]
        )


def steer(ctx: Context, folder: Path, directions: Sequence[Direction], source: int) -> None:
    """Steer one model with its own directions and the other's, except where that was done."""
    remove_leftovers(folder)
    todo = [one for one in directions if not _file(folder, one.name, _role(one, source)).exists()]
    if not todo:
        return
    options, stitching = ctx.options(VerificationOptions), maps_of(ctx)
    model, tokenizer = ctx.language_model(source)
    end, prompts = ctx.run.ends[source], options.read_prompts()
    for one in tqdm(todo, desc=f"Steering {ctx.model_name(source)}", unit="direction"):
        own = one.source == source
        found = dose_response(
            model,
            prompts,
            one.steering(end.hookpoint) if own else one.stitched(end.hookpoint, stitching),
            options.strengths,
            sampling=options.sampling,
            tokenizer=tokenizer,
            answering=Answering(options.as_messages, options.generation_batch_size),
        )
        answers = found.generations.answers
        kept: Steered = {
            "model": end.model,
            "prompts": prompts,
            "strengths": [dose[0] for dose in found.strengths],
            "answers": [[answer.text for answer in row] for row in answers],
            "measures": {name: values.tolist() for name, values in found.measures.items()},
        }
        atomic_write_json(_file(folder, one.name, _role(one, source)), kept)
    del model
    gc.collect()


def read_steered(folder: Path, name: str) -> BothSteered:
    """What `steer` wrote of a direction."""
    remedy = "Delete it, and that model is steered again."
    roles: tuple[Role, Role] = ("original", "partner")
    return BothSteered(*(read_json(_file(folder, name, role), Steered, remedy) for role in roles))


def _role(one: Direction, source: int) -> Role:
    return "original" if one.source == source else "partner"


def _file(folder: Path, name: str, role: Role) -> Path:
    return folder / f"{file_name(name)}.{role}.json"
