"""Rubrics: what steered models are asked, and how their answers are rated from 1 to 5 (B.5.2-7).

A rubric is a YAML file; those of the paper's evaluations are in `rubric_files/`:

```yaml
name: politeness
description: People asked for small favours. To be rated is how polite the answer is.
strengths: {from: -4, to: 4, step: 0.5}     # or a list
generation: {max_new_tokens: 500, temperature: 0, top_p: 1}
dimensions:
  - label: POLITENESS
    question: How polite is the answer?
    levels: {1: Rude., 2: Curt., 3: Neutral., 4: Polite., 5: Courtly.}
examples:
  - {prompt: Got a light?, response: No., scores: {POLITENESS: 2}, reason: No greeting.}
prompts:
  - May I borrow your pen?
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.files import atomic_path
from sparsify_crosscoder.interventions.generation import Sampling

from .question import Message
from .rating import LEVELS, RatingQuestion, Scale, block

if TYPE_CHECKING:
    from .rubric_file import Range

FOLDER = Path(__file__).parent / "rubric_files"
_DIGITS = 10  # of a strength in a range: 3 * 0.1 is 0.3


@dataclass(frozen=True)
class Example:
    """A calibrating example: an answer with the scores that it should get."""

    prompt: str
    response: str
    scores: dict[str, int]
    """By the dimension's label."""

    reason: str


@dataclass(frozen=True)
class Rubric:
    """What is asked at which strengths, and how it is rated."""

    name: str
    description: str
    """Who is asked what and what is to be rated, in the words that the judge is given."""

    dimensions: tuple[Scale, ...]
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    sampling: Sampling
    examples: tuple[Example, ...]

    @classmethod
    def load(cls, path_or_name: str | Path) -> Rubric:
        """A shipped rubric by its name, or one from a file.

        Raises ValueError, which names the file and the key, for anything that is unknown, missing,
        empty, given twice or out of range; FileNotFoundError where there is no such rubric.
        """
        name = str(path_or_name)
        path = FOLDER / f"{name}.yaml" if name in shipped() else Path(path_or_name)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no rubric '{name}': name a YAML file or one of {', '.join(shipped())}."
            )
        return _rubric(path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the keys of a file."""
        sampling = {
            "max_new_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature or 0,
            "top_p": self.sampling.top_p,
        }
        dimensions = [
            {
                "label": one.name,
                "question": one.question,
                "levels": dict(zip(LEVELS, one.levels, strict=True)),
            }
            for one in self.dimensions
        ]
        return {
            "name": self.name,
            "description": self.description,
            "strengths": list(self.strengths),
            "generation": sampling,
            "dimensions": dimensions,
            "examples": [asdict(one) for one in self.examples],
            "prompts": list(self.prompts),
        }

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads."""
        import yaml

        with atomic_path(path) as temporary:
            text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)
            temporary.write_text(text, encoding="utf-8")

    @property
    def labels(self) -> list[str]:
        """Labels of the dimensions."""
        return [one.name for one in self.dimensions]

    def limited(
        self, prompts: int | None = None, strengths: Sequence[float] | None = None
    ) -> Rubric:
        """This with its first prompts alone, or at other strengths; raises ValueError for none."""
        if prompts is not None and prompts < 1:
            raise ValueError(f"At least one prompt is needed, not {prompts}.")
        chosen = self.strengths if strengths is None else tuple(map(float, strengths))
        if not chosen or len(set(chosen)) < len(chosen) or not all(map(math.isfinite, chosen)):
            raise ValueError(f"Strengths must be different finite numbers, got {list(chosen)}.")
        return replace(self, prompts=self.prompts[:prompts], strengths=chosen)

    def system(self) -> str:
        """What the judge is told before the scales; the same for every answer."""
        examples = "\n\n".join(
            "\n".join(
                [
                    f"Example {number}",
                    f"Prompt: {one.prompt}",
                    f"Answer: {one.response}",
                    f"Scores: {', '.join(f'{k} {v}' for k, v in one.scores.items())}",
                    f"Why: {one.reason}",
                ]
            )
            for number, one in enumerate(self.examples, 1)
        )
        return f"""You rate answers of a language model. {self.description}

Rate each scale by itself: an answer may be high on one and low on another, and nonsense can still
lean one way. Answers have a limit of length. One that stops in the middle because it reached the
limit is as coherent as what there is of it.

These examples show how strictly to rate:

{examples}"""

    def material(
        self, prompt: str, answer: str, *, ended: bool | None = None, note: str = ""
    ) -> str:
        """What the judge is shown of one answer: neither the model nor the strength.

        `ended` says whether the model ended its answer, where that is known; `note` is a last line.
        """
        title = "answer, which reached the limit of length" if ended is False else "answer"
        parts = [block("prompt", prompt), block(title, answer), note]
        return "\n\n".join(part for part in parts if part)

    def item(
        self, prompt: str, answer: str, *, ended: bool | None = None, note: str = ""
    ) -> RatingQuestion:
        """The question about one answer; see `material`."""
        material = self.material(prompt, answer, ended=ended, note=note)
        return RatingQuestion(self.system(), material, self.dimensions)

    def messages(self, prompt: str, answer: str, **options: Any) -> list[Message]:
        """The conversation with which an answer's rating begins."""
        return self.item(prompt, answer, **options).messages()


def shipped() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _rubric(path: Path) -> Rubric:
    from .rubric_file import check_scores, no_doubles, read_rubric_file

    file = read_rubric_file(path)
    strengths = _strengths(path, file.strengths)
    no_doubles(path, "strengths", strengths)
    given = file.generation
    with _named(f"{path}: generation"):
        temperature = None if given.temperature == 0 else given.temperature
        sampling = Sampling(given.max_new_tokens, temperature, given.top_p)
    dimensions = []
    for i, one in enumerate(file.dimensions):
        with _named(f"{path}: dimensions[{i}]"):
            dimensions.append(Scale(one.label, one.question, one.texts))
    check_scores(path, file)
    return Rubric(
        file.name,
        file.description,
        tuple(dimensions),
        tuple(file.prompts),
        strengths,
        sampling,
        tuple(
            Example(
                one.prompt,
                one.response,
                {scale.name: one.scores[scale.name] for scale in dimensions},
                one.reason,
            )
            for one in file.examples
        ),
    )


def _strengths(path: Path, given: Range | list[float]) -> tuple[float, ...]:
    if isinstance(given, list):
        return tuple(map(float, given))
    first, last, step = given.first, given.last, given.step
    count = round((last - first) / step) if step > 0 else -1
    if count < 0 or not math.isclose(first + count * step, last, abs_tol=1e-9):
        raise ValueError(f"{path}: strengths must go up from 'from' to 'to' in whole steps.")
    return tuple(round(first + i * step, _DIGITS) + 0.0 for i in range(count + 1))


@contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
