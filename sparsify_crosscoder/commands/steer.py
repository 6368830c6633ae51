"""`sparsify-crosscoder steer RUN --latents ...`: what a model does when it is pushed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..interventions.coherence import CoherenceTest
from ..interventions.generation import STRENGTHS
from ..interventions.options import ModelOptions, PromptOptions, SamplingOptions
from ..interventions.steer import (
    Response,
    SteeringTest,
    likeness_by_dose,
    likeness_table,
    steer,
)
from ..interventions.targets import Target, TargetOptions, latent_targets, vector_target
from ..runs.run import Run


@dataclass(frozen=True)
class Options:
    """Steer a model with latents of a run or with a saved vector at several strengths, show what it
    says, and measure what changed. A strength of 1 is a latent's largest activation."""

    run: Path | None = option(None, positional=True)
    """run folder"""

    latents: list[int] | None = None
    """latents, all steered together"""

    vector: list[Path] | None = None
    """files of persona or transfer instead of latents"""

    target: TargetOptions = group(TargetOptions)

    model: str | None = None
    """the model of --vector, if it has moved, or one that shares its basis"""

    strengths: list[float] = option(list(STRENGTHS))
    """strengths (0 to 10)"""

    coherent: bool = False
    """let the strengths end where answers are no text any more: where the unsteered model finds
    them over a nat a token less likely than its own, or half more of them repeats. They are as many
    as --strengths, from 0 on in equal steps, at most to the largest of these; found for each model
    without a judge"""

    words: list[str] = option([])
    """words whose probability to follow"""

    plot: Path | None = None
    """draw the dose-response curves to this file"""

    prompts: PromptOptions = group(PromptOptions)
    answers: SamplingOptions = group(SamplingOptions)
    models: ModelOptions = group(ModelOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder steer", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Steer, measure, print and return everything as JSON values."""
    test = SteeringTest(
        options.prompts.read(),
        options.strengths,
        options.words,
        options.answers.sampling,
        options.prompts.chat.wanted,
        options.answers.batch_size,
        options.target.backend,
        CoherenceTest(max(options.strengths)) if options.coherent else None,
    )
    responses: list[Response] = []
    for response in steer(_targets(options), test, options.models.loading):
        print(response.text())
        if options.plot is not None:
            labels = ", ".join(s.label or "vector" for s in response.target.steering)
            path = _numbered(options.plot, len(responses))
            response.found.plot(path, f"{response.name}: {labels}")
        responses.append(response)
    result: dict[str, Any] = {
        "prompts": list(test.prompts),
        "models": [response.to_dict() for response in responses],
    }
    if len(responses) > 1:
        doses = likeness_by_dose(*responses)
        result["likeness"] = [one.to_dict() for one in doses]
        print(f"\n{likeness_table(doses)}")
    return result


def _targets(options: Options) -> list[Target]:
    """The models to steer; everything that can be wrong about vectors is found here."""
    if (options.latents is None) == (options.vector is None):
        raise ValueError("Say what to steer with: --latents of a RUN, or --vector FILE.")
    if options.latents is not None:
        if options.run is None:
            raise ValueError("--latents are those of a run; name its folder.")
        run = Run.open(options.run, **options.models.hub.access)
        found = latent_targets(run, options.latents, options.target, options.models.device)
        if found.note is not None:
            print(found.note)
        return found.targets
    if options.target.stitching is not None:
        raise ValueError("--stitching goes with --latents of a run.")
    assert options.vector is not None
    return [vector_target(options.vector, options.target, options.model)]


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_stem(f"{path.stem}-{number + 1}")
