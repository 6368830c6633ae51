"""The directions of differences as steering vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.differences import Difference
from ..runs.models import End
from .vectors import SteeringVector


def difference_vector(one: Difference, ends: Sequence[End]) -> SteeringVector:
    """What its source has more of where it is present: at strength 1 the mean of it there."""
    end = ends[one.source]
    return SteeringVector(
        one.direction,
        end.model,
        end.hookpoint,
        provenance={"difference": one.kind, "latent": one.latent, "rank": one.rank},
        checkpoint=end.checkpoint,
        revision=end.revision,
    )


def save_directions(folder: Path, found: Sequence[Difference], ends: Sequence[End]) -> list[Path]:
    """Write `difference_RANK.safetensors` for each difference; returns the files.

    Raises ValueError where one of them is something else than a steering vector.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for one in found:
        files.append(folder / f"difference_{one.rank:03}.safetensors")
        difference_vector(one, ends).save(files[-1])
    return files
