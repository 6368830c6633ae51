"""What steered models answer to a rubric's prompts, kept so that a stopped run goes on, and rated.

```
SteeredModel.folder/
    <digits of the prompt>.json     {"prompt": ..., "answers": [{"strength", "text", "ended"}]}
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hashing import hash_json
from sparsify_crosscoder.interventions.generation import Answering, generate
from sparsify_crosscoder.interventions.steering import Steering

from ..clients.stopping import run_asking
from .results import read_result
from .rubric_runs import Answers, RubricResult, evaluate
from .rubrics import Rubric

if TYPE_CHECKING:
    from delphi.clients import Client

Kept = dict[float, dict[str, Any]]
"""Answers to one prompt, by strength."""


@dataclass(frozen=True)
class SteeredModel:
    """A model with what it is steered with, and where its answers are kept."""

    load: Callable[[], tuple[Any, Any]]
    """Gives the model, as `generate` takes it, and its tokenizer; called if answers are missing."""

    steering: list[Steering]
    folder: Path
    """For one steering of one model."""

    description: str = "Answering"
    """Beside the progress."""


@dataclass(frozen=True)
class Writing:
    """How answers are written."""

    chat: bool | None = None
    batch_size: int | None = None
    """Rows at once; None: the strengths of one prompt."""


def rate_steered(
    client: Client,
    rubric: Rubric,
    models: Mapping[str, SteeredModel],
    folder: str | Path,
    writing: Writing,
    max_concurrent: int | None = None,
) -> RubricResult:
    """Have models answer a rubric's prompts while they are steered, and a judge rate it.

    `models` are by the labels of their curves; ratings go to `folder`, see `evaluate`. Raises
    `Stopped` where a budget or somebody stopped the judge.
    """
    answers = {label: steered_answers(model, rubric, writing) for label, model in models.items()}
    rating = evaluate(client, rubric, answers, folder, max_concurrent=max_concurrent)
    return run_asking(rating, client)


def steered_answers(model: SteeredModel, rubric: Rubric, writing: Writing) -> Answers:
    """Continue every prompt of a rubric at every strength, or read what is there already.

    Raises ValueError for a file that holds no answers.
    """
    folder = model.folder
    kept = {prompt: _read(folder, prompt) for prompt in rubric.prompts}
    missing = list(_missing(rubric, kept, writing.batch_size or len(rubric.strengths)))
    if missing:
        loaded, tokenizer = model.load()
        total = sum(len(prompts) * len(strengths) for prompts, strengths in missing)
        with tqdm(total=total, desc=model.description, unit="answer") as progress:
            for prompts, strengths in missing:
                found = generate(
                    loaded,
                    prompts,
                    model.steering,
                    strengths,
                    rubric.sampling,
                    tokenizer=tokenizer,
                    answering=Answering(writing.chat, writing.batch_size),
                )
                for prompt, row in zip(prompts, found.answers, strict=True):
                    kept[prompt] |= {
                        strength: {"strength": strength, "text": one.text, "ended": one.ended}
                        for strength, one in zip(strengths, row, strict=True)
                    }
                    one = {"prompt": prompt, "answers": list(kept[prompt].values())}
                    atomic_write_json(_path(folder, prompt), one)
                    progress.update(len(strengths))
    rows = [[kept[prompt][s] for s in rubric.strengths] for prompt in rubric.prompts]
    return Answers(
        [[one["text"] for one in row] for row in rows],
        [[one["ended"] for one in row] for row in rows],
    )


def _missing(
    rubric: Rubric, kept: dict[str, Kept], batch_size: int
) -> Iterator[tuple[list[str], list[float]]]:
    """Prompts that go together, and the strengths that all of them lack."""

    def lacking(prompt: str) -> list[float]:
        return [strength for strength in rubric.strengths if strength not in kept[prompt]]

    for strengths, group in groupby(rubric.prompts, lacking):
        prompts = list(group)
        size = max(batch_size // max(len(strengths), 1), 1)
        for start in range(0, len(prompts) if strengths else 0, size):
            yield prompts[start : start + size], strengths


def _read(folder: Path, prompt: str) -> Kept:
    path = _path(folder, prompt)

    def make(loaded: dict[str, Any]) -> Kept:
        if loaded["prompt"] != prompt:
            raise ValueError(f"it is of the prompt {loaded['prompt']!r:.80}")
        found: Kept = {}
        for one in loaded["answers"]:
            if not isinstance(one["text"], str) or not isinstance(one["ended"], bool):
                raise ValueError("an answer has no text, or does not say whether it ended")
            found[float(one["strength"])] = one
        return found

    return read_result(path, make, "answers to a prompt") if path.exists() else {}


def _path(folder: Path, prompt: str) -> Path:
    return folder / f"{hash_json(prompt)[:12]}.json"
