"""Exclusivity without a judge: whether a latent does to both models' next words the same."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.likeness import (
    Pushes,
    common_words,
    likeness_of_prompts,
    pushes,
)

from .directions import Direction
from .stage import Context
from .stages.cache import Cache
from .stages.stitch import maps_of
from .verification import VerificationOptions

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


def measure_likeness(ctx: Context, directions: Sequence[Direction]) -> list[DirectionLikeness]:
    """Steer both models with every direction, and compare what that does to their next words."""
    asked = ctx.options(VerificationOptions).strengths
    strengths = [strength for strength in asked if strength != 0]
    pushed = [_pushed(ctx, directions, strengths, source) for source in range(2)]
    found = []
    for place, one in enumerate(directions):
        sides = (pushed[one.source], pushed[1 - one.source])
        found.append(_compared(one, strengths, place, *sides))
    return found


def save_likeness(found: Sequence[DirectionLikeness], folder: Path) -> Path:
    """Write them, whole or not at all, and return their place."""
    atomic_write_json(folder / FILE, [asdict(one) for one in found])
    return folder / FILE


def load_likeness(folder: Path) -> list[DirectionLikeness]:
    """What `save_likeness` wrote, in order; nothing where a judge scored instead."""
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
    ctx: Context, directions: Sequence[Direction], strengths: Sequence[float], source: int
) -> Pushes:
    """What the model's own directions, and the images of the other's, do to its next words."""
    options, stitching = ctx.options(VerificationOptions), maps_of(ctx)
    hookpoint = ctx.run.ends[source].hookpoint
    model, tokenizer = ctx.language_model(source)
    found = pushes(
        model,
        tokenizer,
        options.read_prompts(),
        [
            one.steering(hookpoint) if one.source == source else one.stitched(hookpoint, stitching)
            for one in directions
        ],
        strengths,
        common_words(*ctx.output(Cache).text.tokenizers[:2])[source],
        chat=options.as_messages,
        description=f"Steering {ctx.model_name(source)}",
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
