"""Exclusivity scores: what the ratings come to, their files and their order (B.5, equation 19).

```
results_dir/
    exclusivity/<name>.json     an Exclusivity
```
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from .exclusivity_prompt import INTERPRETABILITY, SIMILARITY
from .rating import Rating, Scale
from .results import ResultKind

Kind = Literal["feature", "shared", "random"]
Verdict = Literal["scored", "not_interpretable", "unanswered"]


@dataclass(frozen=True)
class PromptJudgement:
    """Ratings of the answers to one prompt."""

    prompt: str
    interpretability: Rating
    similarity: Rating | None
    """None where the judge was not asked, since steering was not interpretable."""

    blinded: Rating | None
    """The similarity once more, without a word on which model the latent is from, in an order that
    the judge cannot know; None where the judge was not asked."""


@dataclass(frozen=True)
class Exclusivity:
    """How exclusive a direction is to its model, and how that was found out.

    Means are over prompts, and None unless every prompt has its rating. Raises ValueError for an
    unknown kind or status, and where a number is not that of the ratings.
    """

    name: str
    kind: Kind
    """"feature", or one of two nulls: a "shared" latent, a "random" direction."""

    source: int
    """Whose direction it is."""

    status: Verdict
    """"scored"; "not_interpretable": what steering does cannot be named, so it was not compared;
    "unanswered": a rating that decides is missing."""

    interpretability: float | None
    """Mean steering interpretability, 1 to 5."""

    similarity: float | None
    """Mean similarity of what steering does to both models, 1 to 5."""

    score: float | None
    """6 - similarity: 1 for shared to 5 for exclusive (equation 19)."""

    spread: float | None
    """Standard deviation of the prompts' scores, as of a sample; None with a single prompt."""

    blinded_score: float | None
    """6 - the mean similarity where the judge was blinded."""

    prompts: list[PromptJudgement] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.status not in get_args(Verdict):
            raise ValueError(f"unknown kind {self.kind!r} or status {self.status!r}")
        if not isinstance(self.name, str) or type(self.source) is not int:
            raise ValueError(f"no name or no source: {self.name!r}, {self.source!r}")
        for what, value in numbers(self.prompts).items():
            said = getattr(self, what)
            if (said is None) is not (value is None) or not math.isclose(said or 0.0, value or 0.0):
                raise ValueError(f"{what} is {said}, but {value} by the ratings")
        decided = {
            "scored": self.interpretability is not None and self.score is not None,
            "not_interpretable": self.interpretability is not None and self.score is None,
            "unanswered": self.score is None,
        }
        if not decided[self.status]:
            raise ValueError(f"status {self.status!r} with score {self.score}")

    @property
    def complete(self) -> bool:
        """Whether every rating that was asked for was given."""
        asked = [one for p in self.prompts for one in (p.interpretability, p.similarity, p.blinded)]
        return self.status != "unanswered" and all(one.status == "ok" for one in asked if one)


_RESULTS = ResultKind("exclusivity", Exclusivity, "an exclusivity score")


def save(result: Exclusivity, results_dir: str | Path) -> None:
    """Write a result below `results_dir`, whole or not at all."""
    _RESULTS.save(results_dir, result.name, result)


def load(results_dir: str | Path) -> dict[str, Exclusivity]:
    """Every result that `save` wrote below `results_dir`, by name.

    Raises FileNotFoundError where the folder is missing, ValueError for a file that is no result.
    """
    return {one.name: one for one in _RESULTS.load_all(results_dir)}


def done(results_dir: str | Path, name: str) -> bool:
    """Whether a run that resumes may leave this one out: every rating asked for was given.

    Raises ValueError for a file that is no result.
    """
    found = _RESULTS.load(results_dir, name)
    return found is not None and found.complete


def rank(results: Iterable[Exclusivity]) -> list[Exclusivity]:
    """The scored ones, the most exclusive first.

    By score, then by blinded score (those without one behind), interpretability and name.
    """

    def key(one: Exclusivity) -> tuple[float, float, float, str]:
        return (
            -(one.score or 0.0),
            -(one.blinded_score or 0.0),
            -(one.interpretability or 0),
            one.name,
        )

    return sorted((one for one in results if one.status == "scored"), key=key)


def null_summary(results: Iterable[Exclusivity]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores by kind and source (as text), for JSON: what nulls get shows what a score is worth.

    Each has `judged`, `unanswered` and `kept` (scored), and over the kept `mean_score`, `low` and
    `high` (5th and 95th percentile), `mean_blinded_score`; None where there is nothing to average.
    """
    groups: dict[str, dict[str, list[Exclusivity]]] = {}
    for one in sorted(results, key=lambda one: (one.kind, one.source)):
        groups.setdefault(one.kind, {}).setdefault(str(one.source), []).append(one)
    return {
        kind: {source: _summary(some) for source, some in sources.items()}
        for kind, sources in groups.items()
    }


def numbers(prompts: Sequence[PromptJudgement]) -> dict[str, Any]:
    """The means of an Exclusivity that its ratings give, by field."""
    similar = _scores([one.similarity for one in prompts], SIMILARITY)
    blinded = mean_score([one.blinded for one in prompts], SIMILARITY)
    return {
        "interpretability": mean_score([one.interpretability for one in prompts], INTERPRETABILITY),
        "similarity": fmean(similar) if similar else None,
        "score": 6 - fmean(similar) if similar else None,
        "spread": stdev(similar) if similar and len(similar) > 1 else None,
        "blinded_score": None if blinded is None else 6 - blinded,
    }


def _scores(ratings: Iterable[Rating | None], scale: Scale) -> list[int] | None:
    """Each rating's score; None unless every one has it, and for no ratings."""
    scores = [one.scores.get(scale.name) if one else None for one in ratings]
    known = [score for score in scores if score is not None]
    return known if known and len(known) == len(scores) else None


def mean_score(ratings: Iterable[Rating | None], scale: Scale) -> float | None:
    """Mean of the ratings on one scale; None unless every one has it."""
    scores = _scores(ratings, scale)
    return fmean(scores) if scores else None


def _summary(some: Sequence[Exclusivity]) -> dict[str, Any]:
    import numpy as np

    scores = [one.score for one in some if one.score is not None]
    blinded = [one.blinded_score for one in some if one.blinded_score is not None]
    low, high = np.percentile(scores, [5, 95]).tolist() if scores else (None, None)
    return {
        "judged": len(some),
        "unanswered": sum(one.status == "unanswered" for one in some),
        "kept": len(scores),
        "mean_score": fmean(scores) if scores else None,
        "low": low,
        "high": high,
        "mean_blinded_score": fmean(blinded) if blinded else None,
    }
