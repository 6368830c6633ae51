"""Exclusivity without a judge: whether a latent does to both models' next words the same."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.command_parts import CHAT, read_prompts
from sparsify_crosscoder.interventions.likeness import (
    Pushes,
    common_words,
    likeness_of_prompts,
    pushes,
)

from .directions import Direction, directions_to_verify, load_stitching
from .stages import Outcome
from .workspace import Workspace

FILE = "likeness.json"


@dataclass(frozen=True)
class DirectionLikeness:
    """How like what a direction does to its own model is to what its image does to the other.

    Lists have a value per strength other than 0.
    """

    name: str
    kind: str
    """"feature", "shared" or "random"."""

    why: str
    source: int
    latent: int | None
    strengths: list[float]
    correlation: list[list[float]]
    """Of the changes of log-probability of likely words, `[strength][prompt]`."""

    size: list[list[float]]
    """Spread of the other model's change, as a multiple of its own model's."""

    kl: list[list[list[float]]]
    """Change of the next token (KL, nats) of its own model and of the other."""

    @property
    def likeness(self) -> float:
        """Mean correlation over strengths and prompts."""
        return fmean(fmean(row) for row in self.correlation)

    @property
    def spread(self) -> float:
        """Standard deviation over the prompts."""
        return pstdev(fmean(row) for row in zip(*self.correlation, strict=True))

    @property
    def effect(self) -> float:
        """Mean change of its own model."""
        return fmean(fmean(row) for row in self.kl[0])


def likeness_inputs(work: Workspace) -> dict[str, Any]:
    names = ("judge", "verify", "sample", "nulls", "audit_seed", "chat")
    return {
        **{name: getattr(work.args, name) for name in names},
        "prompts": read_prompts(work.args),
        "strengths": work.args.strengths,
    }


def measure_likeness(work: Workspace, folder: Path) -> Outcome:
    """Steer both models with every direction, and compare what that does to their next words."""
    directions, facts = directions_to_verify(work)
    strengths = [strength for strength in work.args.strengths if strength != 0]
    pushed = [_pushed(work, directions, strengths, source) for source in range(2)]
    found = []
    for f, one in enumerate(directions):
        sides = (pushed[one.source], pushed[1 - one.source])
        found.append(_compared(one, strengths, f, *sides))
    atomic_write_json(folder / FILE, [asdict(one) for one in found])
    listed = [
        {"name": one.name, "why": one.why, "source": one.source, "latent": one.latent}
        for one in directions
    ]
    return Outcome({**facts, "directions": listed, "ledger": None}, [folder / FILE])


def load_likeness(folder: Path) -> list[DirectionLikeness]:
    """What `measure_likeness` wrote, in order; nothing where a judge scored instead."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return [DirectionLikeness(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it, and it is made again."
        ) from error


def _pushed(
    work: Workspace, directions: Sequence[Direction], strengths: Sequence[float], source: int
) -> Pushes:
    """What the model's own directions, and the images of the other's, do to its next words."""
    hookpoint, stitching = work.ends[source].hookpoint, load_stitching(work)
    model, tokenizer = work.language_model(source)
    found = pushes(
        model,
        tokenizer,
        read_prompts(work.args),
        [
            one.steering(hookpoint) if one.source == source else one.stitched(hookpoint, stitching)
            for one in directions
        ],
        strengths,
        common_words(*work.text.tokenizers[:2])[source],
        chat=CHAT[work.args.chat],
        description=f"Steering {work.model_name(source)}",
    )
    del model
    gc.collect()
    return found


def _compared(
    one: Direction, strengths: Sequence[float], place: int, own: Pushes, other: Pushes
) -> DirectionLikeness:
    pairs = zip(own.changes[place], other.changes[place], strict=True)
    measured = [likeness_of_prompts(*pair) for pair in pairs]
    return DirectionLikeness(
        one.name,
        one.kind,
        one.why,
        one.source,
        one.latent,
        list(strengths),
        [correlation.tolist() for correlation, _ in measured],
        [size.tolist() for _, size in measured],
        [side.kl[place].tolist() for side in (own, other)],
    )
