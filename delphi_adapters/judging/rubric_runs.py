"""Rating what models answered at each strength by a rubric, and the curves that come of it (B.5).

```
folder/
    rubric.yaml             what was asked
    ratings/<item>.json     an Item
```

An item's name tells neither the model nor the strength, so that people can rate items unaware too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsify_crosscoder.hashing import hash_json

from ..clients.judge import fitting
from .ask import Todo, ask_all, kept_results, settled
from .bootstrap import Array, Interval, difference, intervals
from .question import encodable
from .rating import Rating, rate
from .results import ResultKind
from .rubrics import Rubric

# isort: split
from delphi.clients.client import Client

RUBRIC = "rubric.yaml"


class Place(NamedTuple):
    """One answer: the first fields of its `Item`."""

    item: str
    model: str
    prompt: str
    strength: float
    answer: str
    ended: bool | None


@dataclass(frozen=True)
class Item:
    """One answer and its rating."""

    item: str
    """Its name: digits that depend on model, prompt and strength."""

    model: str
    prompt: str
    strength: float
    answer: str
    ended: bool | None
    """Whether the model ended the answer itself; None where that is not known."""

    asked: str
    """Digest of what the judge was asked first, scales and examples included."""

    rating: Rating

    @property
    def place(self) -> Place:
        return Place(self.item, self.model, self.prompt, self.strength, self.answer, self.ended)


RATED = ResultKind("ratings", Item, "a rating")


@dataclass(frozen=True)
class Answers:
    """What one model answered to P prompts at K strengths."""

    texts: Sequence[Sequence[str]]
    """`texts[p][k]`."""

    ended: Sequence[Sequence[bool]] | None = None
    """Whether it ended the answer itself, in the same form."""


@dataclass(frozen=True)
class Curve:
    """A dimension's mean over the prompts at each strength, with 95% intervals."""

    strengths: list[float]
    mean: list[float | None]
    """None where no rating could be read."""

    low: list[float | None]
    high: list[float | None]
    n: list[int]
    """Prompts with a rating."""


@dataclass(frozen=True)
class RubricResult:
    """Ratings of every model's answers, `ratings[model][p][k]`."""

    rubric: Rubric
    ratings: dict[str, list[list[Rating]]]

    @property
    def models(self) -> list[str]:
        return list(self.ratings)

    def scores(self, model: str, dimension: str) -> Array:
        """Scores `[P, K]`, NaN where there is none. Raises ValueError for unknown names."""
        for name, known in ((model, self.models), (dimension, self.rubric.labels)):
            if name not in known:
                raise ValueError(f"There is no '{name}'; there are {', '.join(known)}.")
        rows = [
            [rating.scores.get(dimension, np.nan) for rating in row] for row in self.ratings[model]
        ]
        return np.array(rows, dtype=float)

    def curves(self, dimension: str) -> dict[str, Curve]:
        """By model, at rising strengths."""
        return {
            model: self._curve(intervals(self._rising(model, dimension))) for model in self.models
        }

    def against_unsteered(self, dimension: str) -> dict[str, Curve]:
        """By model, the mean change from strength 0 on the same prompts; empty without that."""
        if 0 not in self.rubric.strengths:
            return {}
        at = sorted(self.rubric.strengths).index(0)
        found = {}
        for model in self.models:
            rows = self._rising(model, dimension)
            changes = [difference(rows[at], row) for row in rows]
            changes[at] = Interval(0.0, 0.0, 0.0, changes[at].n)  # itself, so exactly
            found[model] = self._curve(changes)
        return found

    def between(self, dimension: str, first: str, second: str) -> Curve:
        """How far the second model's scores lie above the first's on the same prompts."""
        pairs = zip(self._rising(first, dimension), self._rising(second, dimension), strict=True)
        return self._curve([difference(a, b) for a, b in pairs])

    def counts(self) -> dict[str, dict[str, int]]:
        """By model, how many ratings are ok, unparsable and failed."""
        found = {}
        for model, rows in self.ratings.items():
            number = Counter(rating.status for row in rows for rating in row)
            found[model] = {status: number[status] for status in ("ok", "unparsable", "failed")}
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values: curves, differences and counts."""
        pairs = [
            (first, second)
            for i, first in enumerate(self.models)
            for second in self.models[i + 1 :]
        ]
        return {
            "rubric": self.rubric.name,
            "models": self.models,
            "prompts": len(self.rubric.prompts),
            "strengths": sorted(self.rubric.strengths),
            "counts": self.counts(),
            "dimensions": {
                label: {
                    "curves": {m: asdict(c) for m, c in self.curves(label).items()},
                    "against_unsteered": {
                        m: asdict(c) for m, c in self.against_unsteered(label).items()
                    },
                    "between": [
                        {"first": a, "second": b, **asdict(self.between(label, a, b))}
                        for a, b in pairs
                    ],
                }
                for label in self.rubric.labels
            },
        }

    def table(self) -> str:
        """Markdown: for each dimension a row per strength with every model's mean and interval."""
        parts = []
        for label in self.rubric.labels:
            curves = self.curves(label)
            names = [" ".join(model.replace("|", "/").split()) for model in self.models]
            lines = [f"**{label}**", "", f"| Strength | {' | '.join(names)} |"]
            lines.append("| ---: |" + " ---: |" * len(names))
            for k, strength in enumerate(sorted(self.rubric.strengths)):
                cells = " | ".join(_cell(curve, k) for curve in curves.values())
                lines.append(f"| {strength:g} | {cells} |")
            parts.append("\n".join(lines))
        counts = [
            f"{model}: {n['ok']} rated, {n['unparsable']} unparsable, {n['failed']} failed"
            for model, n in self.counts().items()
        ]
        number = len(self.rubric.prompts)
        note = (
            f"Means over {number} prompt{'s' if number > 1 else ''} with 95% intervals; n is given "
            "where some have no rating."
        )
        return "\n\n".join([*parts, f"{note} {'; '.join(counts)}."])

    def _rising(self, model: str, dimension: str) -> Array:
        """`[K, P]`, strengths rising."""
        return self.scores(model, dimension).T[np.argsort(self.rubric.strengths)]

    def _curve(self, found: Sequence[Interval]) -> Curve:
        return Curve(
            sorted(self.rubric.strengths),
            mean=[one.mean for one in found],
            low=[one.low for one in found],
            high=[one.high for one in found],
            n=[one.n for one in found],
        )


async def evaluate(
    client: Client,
    rubric: Rubric,
    answers: Mapping[str, Answers],
    folder: str | Path,
    *,
    max_concurrent: int | None = None,
    temperature: float = 0.0,
    **generation_kwargs: Any,
) -> RubricResult:
    """Rate every model's answer to every prompt at every strength.

    The judge sees a prompt and an answer, not the model or the strength. Each rating is written to
    the folder when it is there; one that is there already and was asked the same is not asked
    again, unless the client had failed. `max_concurrent` are asked for at a time. Raises ValueError
    before anything is asked where answers do not fit the rubric, or a file is no rating.
    """
    folder = Path(folder)
    _check(rubric, answers)
    options: dict[str, Any] = {"temperature": temperature, **generation_kwargs}
    todo = [to_rate(client, rubric, place, "", options) for place in _places(rubric, answers)]
    found = kept_results(RATED, folder, todo)
    rubric.save(folder / RUBRIC)
    left = [one for one in todo if one.name not in found]
    at_once = max_concurrent or fitting(client)
    found |= await ask_all(RATED, folder, left, at_once, "Rating answers")
    ratings = {
        model: [
            [found[item_name(model, prompt, strength)].rating for strength in rubric.strengths]
            for prompt in rubric.prompts
        ]
        for model in answers
    }
    return RubricResult(rubric, ratings)


def to_rate(
    client: Client, rubric: Rubric, place: Place, note: str, options: Mapping[str, Any]
) -> Todo[Item]:
    """An answer to be rated, unless it is rated and was asked about in the same words.

    `note` is a last line for the judge; `options` are passed to `rate`.
    """
    question = rubric.item(place.prompt, place.answer, ended=place.ended, note=note)
    asked = digest(question.messages())

    async def judge() -> Item:
        return Item(*place, asked, await rate(client, question, **options))

    return Todo(place.item, judge, lambda kept: kept.asked == asked and settled(kept.rating))


def load_items(folder: str | Path) -> dict[str, Item]:
    """Every item rated in a folder, by its name.

    Raises FileNotFoundError where the folder is missing, ValueError for a file that is no rating.
    """
    return {one.item: one for one in RATED.load_all(folder)}


def digest(messages: Sequence[Mapping[str, str]]) -> str:
    """Of what a judge is asked first."""
    return hash_json(messages)


def item_name(model: str, prompt: str, strength: float) -> str:
    """Twelve hexadecimal digits."""
    return hash_json([model, prompt, float(strength)])[:12]


def _places(rubric: Rubric, answers: Mapping[str, Answers]) -> Iterator[Place]:
    for model, given in answers.items():
        for p, prompt in enumerate(rubric.prompts):
            for k, strength in enumerate(rubric.strengths):
                ended = None if given.ended is None else given.ended[p][k]
                name = item_name(model, prompt, strength)
                yield Place(name, model, prompt, strength, encodable(given.texts[p][k]), ended)


def _check(rubric: Rubric, answers: Mapping[str, Answers]) -> None:
    if not answers:
        raise ValueError("There are no answers to rate.")
    want = [len(rubric.strengths)] * len(rubric.prompts)
    for model, given in answers.items():
        for rows in (given.texts, given.ended):
            if rows is not None and [len(row) for row in rows] != want:
                raise ValueError(
                    f"Answers of {model} must be those to {len(want)} prompts at "
                    f"{len(rubric.strengths)} strengths each, as the rubric has them."
                )


def _cell(curve: Curve, k: int) -> str:
    if curve.mean[k] is None:
        return "-"
    most = max(curve.n)
    n = f" (n={curve.n[k]})" if curve.n[k] < most else ""
    return f"{curve.mean[k]:.2f} [{curve.low[k]:.2f}, {curve.high[k]:.2f}]{n}"
