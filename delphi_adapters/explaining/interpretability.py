"""Is a latent interpretable? delphi's detection score against the paper's threshold.

```
results_dir/
    scores/detection/<latent>.txt     as delphi stores them
    interpretability/<latent>.json    an Interpretability
```
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsify_crosscoder.files import atomic_path

from ..delphi import compat  # noqa: F401

# isort: split
import orjson
from delphi.clients import Client
from delphi.latents import ActivatingExample, LatentRecord
from delphi.scorers import DetectionScorer, Scorer
from delphi.scorers.classifier.sample import ClassifierOutput
from delphi.scorers.scorer import ScorerResult

from ..judging.results import ResultKind, file_name
from .flagging import MISSING, UNPARSED


@dataclass(frozen=True)
class DetectionAccuracy:
    """How many of the examples shown the judge classified correctly."""

    accuracy: float
    """Fraction of all examples, 0 to 1; the paper's detection score (B.4.4)."""

    balanced_accuracy: float | None
    """Mean of the fractions among activating and among other examples, as delphi's log reports it;
    None where there are none of one kind."""

    n_examples: int
    n_unanswered: int
    """Examples without a prediction, which count as wrong."""


def detection_accuracy(
    outputs: Sequence[ClassifierOutput | Mapping[str, Any]],
) -> DetectionAccuracy:
    """Accuracy over a detection scorer's outputs, or over the list in a file that delphi saved.

    Unlike delphi's own metrics, which leave unanswered examples out, this counts them as wrong: a
    judge that answers only what is easy gains nothing. Raises ValueError where there are none.
    """
    if not outputs:
        raise ValueError("detection_accuracy needs at least one output of a detection scorer.")
    rows = [one if isinstance(one, Mapping) else vars(one) for one in outputs]
    right: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        right[bool(row["activating"])].append(row["prediction"] == row["activating"])
    fractions = [sum(kind) / len(kind) for kind in right.values() if kind]
    return DetectionAccuracy(
        accuracy=sum(map(sum, right.values())) / len(rows),
        balanced_accuracy=sum(fractions) / 2 if len(fractions) == 2 else None,
        n_examples=len(rows),
        n_unanswered=sum(row["prediction"] is None for row in rows),
    )


@dataclass(frozen=True)
class Interpretability:
    """What the filter decided about one latent."""

    interpretable: bool | None
    """None where the latent is not scorable."""

    score: float | None
    """Accuracy over all examples, unanswered ones wrong; None where not scorable."""

    n_unanswered: int = 0
    not_scorable: str | None = None
    """Why there is no score."""

    @property
    def final(self) -> bool:
        """Whether asking again is of no use: False where the judge answered for no example."""
        return self.score is not None or not self.n_unanswered


class InterpretabilityResult(ScorerResult):
    """delphi's result of a detection scorer, with the decision as `.interpretability`.

    `.score` has delphi's outputs, one per example shown, and is empty where the latent is not
    scorable; so it is stored and logged as any detection score is.
    """

    interpretability: Interpretability

    def __new__(
        cls, record: LatentRecord, score: list[ClassifierOutput], interpretability: Interpretability
    ) -> InterpretabilityResult:
        result = super().__new__(cls, record, score)
        result.interpretability = interpretability
        return result

    def __getnewargs__(  # pyright: ignore
        self,
    ) -> tuple[LatentRecord, list[ClassifierOutput], Interpretability]:
        return self.record, self.score, self.interpretability


@dataclass
class InterpretabilityFilter(Scorer):
    """Calls a latent interpretable if a judge can tell its examples from others.

    The judge has the explanation and the 10 examples with the greatest activation among 10 random
    ones where the latent is silent. The score is plain accuracy, the fraction of the 20 that is
    classified correctly, and has to be at least 0.8 (B.4.1, B.4.4). With as many examples of
    either kind, balanced accuracy is the same number.

    Use it as any of delphi's scorers, on records that have an explanation and, for random examples,
    come from `ConstructorConfig(non_activating_source="random")`. The record is left as it was.
    Raises ValueError where `n_examples_shown` does not divide the number of examples, since delphi
    cannot read the answer to a smaller last batch.
    """

    client: Client
    tokenizer: Any = None
    """Decodes examples that delphi's sampler left as ids, which is most of them: the tokenizer that
    the LatentDataset was given (`compat.TokenwiseTokenizer`)."""

    n_examples_shown: int = 5
    """Examples in one request."""

    n_top: int = 10
    n_random: int = 10
    threshold: float = 0.8
    """Least score of an interpretable latent."""

    seed: int = 42
    """Of which random examples are shown and in what order; other latents do not change it."""

    temperature: float = 0.0
    verbose: bool = False
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the client."""

    name = "detection"

    def __post_init__(self) -> None:
        total = self.n_top + self.n_random
        if self.n_top < 1 or self.n_random < 1:
            raise ValueError("n_top and n_random must be at least 1.")
        if self.n_examples_shown < 1 or total % self.n_examples_shown:
            fitting = [n for n in range(1, total + 1) if total % n == 0]
            raise ValueError(
                f"n_examples_shown={self.n_examples_shown} does not divide the {total} examples "
                f"(n_top + n_random): use one of {fitting}."
            )

    async def __call__(self, record: LatentRecord) -> InterpretabilityResult:
        problem = self.problem(record)
        if problem is not None:
            return InterpretabilityResult(
                record, [], Interpretability(None, None, not_scorable=problem)
            )
        rng = random.Random(f"{self.seed} {record.latent}")
        top = sorted(record.examples, key=lambda one: one.max_activation, reverse=True)
        outputs = await self.classified(record, top[: self.n_top], rng, self.n_examples_shown)
        return InterpretabilityResult(record, outputs, self._decide(outputs))

    async def classified(
        self,
        record: LatentRecord,
        active: Sequence[ActivatingExample],
        rng: random.Random,
        n_examples_shown: int,
    ) -> list[ClassifierOutput]:
        """What the judge says of some passages by the record's explanation, among `n_random` silent
        ones, so many in one request."""
        scorer = DetectionScorer(
            self.client,
            verbose=self.verbose,
            n_examples_shown=n_examples_shown,
            temperature=self.temperature,
            **self.generation_kwargs,
        )
        scorer.rng = rng
        shown = replace(
            record,
            test=[self._decoded(example) for example in active],
            not_active=rng.sample(record.not_active, self.n_random),
        )
        return (await scorer(shown)).score

    def _decide(self, outputs: list[ClassifierOutput]) -> Interpretability:
        measured = detection_accuracy(outputs)
        if measured.n_unanswered == measured.n_examples:
            return Interpretability(
                None,
                None,
                n_unanswered=measured.n_unanswered,
                not_scorable=f"the judge answered for none of the {measured.n_examples} examples",
            )
        return Interpretability(
            measured.accuracy >= self.threshold,
            measured.accuracy,
            n_unanswered=measured.n_unanswered,
        )

    def problem(self, record: LatentRecord) -> str | None:
        """Why a latent cannot be tested, if it cannot."""
        if not record.explanation.strip() or record.explanation in (UNPARSED, MISSING):
            return "the latent has no explanation"
        for found, kind, needed in (
            (record.examples, "activating", self.n_top),
            (record.not_active, "non-activating", self.n_random),
        ):
            if len(found) < needed:
                return f"{len(found)} {kind} examples, fewer than the {needed} needed"
        return None

    def _decoded(self, example: ActivatingExample) -> ActivatingExample:
        if example.str_tokens is not None:
            return example
        if self.tokenizer is None:
            raise ValueError(
                "delphi decodes only the examples that its sampler picks, not all with the "
                "greatest activation: give InterpretabilityFilter the LatentDataset's tokenizer."
            )
        return replace(example, str_tokens=self.tokenizer.batch_decode(example.tokens))


@dataclass(frozen=True)
class _Decision:
    """A file: an `Interpretability` behind its latent's name."""

    latent: str
    interpretable: bool | None
    score: float | None
    n_unanswered: int = 0
    not_scorable: str | None = None


_DECISIONS = ResultKind("interpretability", _Decision, "a decision")


def save(result: InterpretabilityResult, results_dir: str | Path) -> Interpretability:
    """Write a result below `results_dir` and return the decision.

    The score goes where delphi's `log_results` reads it, with the bytes that delphi writes; there
    is none for a latent that is not scorable. Each file appears whole or not at all.
    """
    latent = result.record.latent
    if result.score:
        name = file_name(latent)
        with atomic_path(Path(results_dir, "scores", "detection", f"{name}.txt")) as temporary:
            temporary.write_bytes(orjson.dumps(result.score))
    found = result.interpretability
    _DECISIONS.save(results_dir, latent, _Decision(str(latent), **vars(found)))
    return found


def load(results_dir: str | Path) -> dict[str, Interpretability]:
    """Every decision that `save` wrote below `results_dir`, by the latent's name.

    Raises FileNotFoundError where the folder is missing, ValueError for a file that is none.
    """
    found = {}
    for one in _DECISIONS.load_all(results_dir):
        values = dict(vars(one))
        name = values.pop("latent")
        found[name] = Interpretability(**values)
    return found
