"""What a steered model answers to a rubric's prompts, kept so that a stopped run goes on.

```
folder/
    <digits of the prompt>.json     {"prompt": ..., "answers": [{"strength", "text", "ended"}]}
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.generation import generate
from sparsify_crosscoder.interventions.steering import Steering

from .result_files import read_result
from .rubric_runs import Answers
from .rubrics import Rubric

Kept = dict[float, dict[str, Any]]
"""Answers to one prompt, by strength."""


def steered_answers(
    load: Callable[[], tuple[Any, Any]],
    steering: list[Steering],
    rubric: Rubric,
    folder: str | Path,
    *,
    chat: bool | None = None,
    batch_size: int | None = None,
    description: str = "Answering",
) -> Answers:
    """Continue every prompt of a rubric at every strength, or read what is there already.

    `load` gives the model, as `generate` takes it, and its tokenizer; it is called only if answers
    are missing. `batch_size` is the rows at once, by default the strengths of one prompt. The
    folder is for one steering of one model. Raises ValueError for a file that holds no answers.
    """
    folder = Path(folder)
    kept = {prompt: _read(folder, prompt) for prompt in rubric.prompts}
    missing = list(_missing(rubric, kept, batch_size or len(rubric.strengths)))
    if missing:
        model, tokenizer = load()
        total = sum(len(prompts) * len(strengths) for prompts, strengths in missing)
        with tqdm(total=total, desc=description, unit="answer") as progress:
            for prompts, strengths in missing:
                found = generate(
                    model,
                    prompts,
                    steering,
                    strengths,
                    rubric.sampling,
                    tokenizer=tokenizer,
                    chat=chat,
                    batch_size=batch_size,
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
    return folder / f"{hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:12]}.json"
