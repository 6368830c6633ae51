"""Which of a run's models a vector belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..harvest.model_identity import same_model, same_name
from ..runs.models import End
from .vectors import SteeringVector


def _described(one: End | SteeringVector) -> dict[str, Any]:
    return {"name": one.model, "revision": one.revision, "checkpoint": one.checkpoint}


def source_of(ends: Sequence[End], vector: SteeringVector) -> int:
    """Which of a run's models a vector belongs to, by the digest of its checkpoint.

    Of vectors and runs that have none by the model's name and revision. Raises ValueError if it
    belongs to none, or to several.
    """

    def is_of(end: End) -> bool:
        return end.hookpoint == vector.hookpoint and same_model(*map(_described, (end, vector)))

    found = [s for s, end in enumerate(ends) if is_of(end)]
    if len(found) != 1:
        sources = ", ".join(f"{end.model} {end.hookpoint}" for end in ends)
        named = [end for end in ends if same_name(end.model, vector.model)]
        reason = ""
        if len(found) > 1:
            reason = f" {len(found)} of these are that model there."
        elif any(end.hookpoint == vector.hookpoint for end in named):
            reason = " The model of that name had other weights when the vector was made."
        raise ValueError(
            f"The vector is of '{vector.model}' at {vector.hookpoint}, and the run's sources are "
            f"{sources}.{reason} Make the vector at the run's hookpoint, or say with --source "
            "which one it is for."
        )
    return found[0]
