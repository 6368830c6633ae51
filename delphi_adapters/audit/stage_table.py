"""What each stage reads of the options, and what does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import (
    build_stages,
    describe_stage,
    explain_stages,
    report_stage,
    rubric_stage,
    verify_stages,
)
from .stages import Outcome
from .workspace import Workspace


class Stage(NamedTuple):
    """One stage."""

    inputs: Callable[[Workspace], dict[str, Any]]
    """The options that change its outputs."""

    do: Callable[[Workspace, Path], Outcome]


def stage_table() -> dict[str, Stage]:
    """Every stage by its name."""
    return {
        "harvest": Stage(build_stages.harvest_inputs, build_stages.harvest),
        "train": Stage(build_stages.train_inputs, build_stages.train_crosscoder),
        "cache": Stage(explain_stages.cache_inputs, explain_stages.cache),
        "filter": Stage(build_stages.filter_inputs, build_stages.filter_latents),
        "null": Stage(build_stages.null_inputs, build_stages.null),
        "describe": Stage(describe_stage.describe_inputs, describe_stage.describe_latents),
        "explain": Stage(explain_stages.explain_inputs, explain_stages.explain),
        "score": Stage(explain_stages.score_inputs, explain_stages.score),
        "stitch": Stage(verify_stages.stitch_inputs, verify_stages.stitch),
        "exclusivity": Stage(verify_stages.exclusivity_inputs, verify_stages.exclusivity),
        "rubrics": Stage(rubric_stage.rubric_inputs, rubric_stage.rubrics),
        "report": Stage(report_stage.report_inputs, report_stage.report),
    }
