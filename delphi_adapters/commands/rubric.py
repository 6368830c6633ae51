"""`python -m delphi_adapters rubric RUN --latent N --rubric R`: what steering does, as rated.

```
out/
    results.json, table.md, dose_response.png
    config.json, generations/, ...      see judging.steered_latent
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_options import group, option
from sparsify_crosscoder.files import atomic_path, atomic_write_json
from sparsify_crosscoder.interventions.options import ChatOptions, ModelOptions
from sparsify_crosscoder.interventions.targets import TargetOptions
from sparsify_crosscoder.runs.run import Run

from ..judging.rubric_runs import RubricResult
from ..judging.rubrics import Rubric, shipped
from ..judging.steered_latent import LatentSteering, rate_latent
from ..report.dose_response_plot import save_dose_response
from .judge_options import NamedJudge, run_asking_command


@dataclass(frozen=True)
class Options:
    """Steer a latent's model, and with --stitching the other one, at several strengths, have a
    judge rate every answer by a rubric, and draw the dose-response curves with 95% intervals (B.5.2
    to B.5.7). A run that was stopped goes on."""

    run: Path = option(positional=True)
    """run folder"""

    latent: int = option()
    """the latent to steer with"""

    rubric: str = option(help=f"a YAML file, or one of {', '.join(shipped())}")

    judge: NamedJudge = group(NamedJudge)

    out: Path | None = None
    """folder (RUN/rubrics/RUBRIC-latentN)"""

    prompts_limit: int | None = None
    """only the rubric's first prompts"""

    strengths: list[float] | None = None
    """other strengths than the rubric's"""

    max_new_tokens: int | None = None
    """length of an answer (the rubric's)"""

    batch_size: int | None = None
    """rows at once (the strengths of one prompt)"""

    chat: ChatOptions = group(ChatOptions)
    target: TargetOptions = group(TargetOptions)
    models: ModelOptions = group(ModelOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_asking_command("python -m delphi_adapters rubric", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Steer, answer, rate, draw; print the table and return everything as JSON values."""
    rubric, hub = _rubric(options), options.models.hub
    folder = options.out or options.run / "rubrics" / f"{rubric.name}-latent{options.latent}"
    found = rate_latent(
        options.judge.config(options.models.device, trust_remote_code=hub.trust_remote_code),
        rubric,
        LatentSteering(
            Run.open(options.run, **hub.access),
            options.latent,
            options.target,
            options.models.loading,
            options.chat,
            options.batch_size,
        ),
        folder,
        dry_run=options.judge.dry_run,
    )
    if found.ledger is not None:
        print(f"Ratings cost ${found.ledger.cost:.4f}, those of earlier runs included.")
    result = found.to_dict()
    if found.rated is not None:
        _write(folder, result, found.rated, f"latent {options.latent}, {rubric.name}")
    return result


def _rubric(options: Options) -> Rubric:
    rubric = Rubric.load(options.rubric).limited(options.prompts_limit, options.strengths)
    if options.max_new_tokens is None:
        return rubric
    sampling = replace(rubric.sampling, max_new_tokens=options.max_new_tokens)
    return replace(rubric, sampling=sampling)


def _write(folder: Path, result: Mapping[str, Any], rated: RubricResult, title: str) -> None:
    table = rated.table()
    print(f"\n{table}\n")
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    save_dose_response(rated, folder / "dose_response.png", title)
    atomic_write_json(folder / "results.json", result)
    print(f"Everything is in '{folder}'; the curves are dose_response.png.")
