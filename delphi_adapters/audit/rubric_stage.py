"""How far latents move both models on a rubric's questions (B.5.2 to B.5.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report.data import Curve
from .stages import Outcome
from .workspace import Workspace


def rubric_inputs(work: Workspace) -> dict[str, Any]:
    return {name: getattr(work.args, name) for name in ("rubrics", "rubric_features")}


def rubrics(work: Workspace, folder: Path) -> Outcome:
    return Outcome()


def rubric_curves(work: Workspace, name: str) -> list[Curve]:
    return []
