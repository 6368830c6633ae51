"""Whether the entry that concerns an organism's behaviour causes it, by held-out texts.

The entry's direction is what the organism has more of where the entry is present, on average: it is
added to the base, and ablated in the organism, where the base's own component at each token takes
its place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from organism_runs import trained
from organism_scores import Row
from organism_settings import REMEDY, Case
from organisms import Organism
from organisms.organism import Text

from sparsify_crosscoder import Run, list_differences
from sparsify_crosscoder.evaluation.differences import Difference
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.answer_likelihood import Answered
from sparsify_crosscoder.interventions.cause import Behaviour, Cause, CauseSettings, cause
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.records import read_json

TEXTS = 12
"""Of each kind, at most."""

TOKENS = 48
"""Of an answer, at most."""

ADDING = CauseSettings(strengths=(1.0,), spans=("hookpoint",))
ABLATING = CauseSettings(spans=("onwards",))


@dataclass(frozen=True)
class CauseRow:
    """What one intervention with an entry does to the behaviour."""

    organism: str
    pair: str
    text: str
    architecture: str
    seed: int
    rank: int
    kind: str
    source: int
    """Which model has more of it: 0 the base, which the organism then has lost, or 1."""

    latent: int | None
    test: str
    """"adds" (to the base) or "ablates" (in the organism)."""

    effect: float
    """Nats a token; see `Cause`."""

    low: float
    """95% interval of the effect."""

    high: float
    random: list[float]
    """Effects of random directions of equal length."""

    strength: float
    """Multiple of the direction."""

    span: str
    verified: bool
    sentence: str
    seconds: float

    @property
    def beyond(self) -> int:
        """How many random directions do less."""
        return sum(self.effect > one for one in self.random)


class _Pair(NamedTuple):
    """Both models of a case."""

    base: Any
    organism: Any
    tokenizer: Any


def causes_of(case: Case, rows: Sequence[Row]) -> list[CauseRow]:
    """The causes of a case's rows, those that are not there yet tested.

    None of rows without an entry that concerns the behaviour, of organisms without held-out texts,
    and beside a model of another family, to which the direction cannot be added.
    """
    found: list[CauseRow] = []
    models: _Pair | None = None
    if case.pair != "base" or not case.organism.behaviour_texts():
        return found
    for row in rows:
        file = case.folder / f"cause-{row.architecture}-{row.seed}.json"
        if row.rank is None:
            continue
        if not file.is_file():
            run = trained(case, row.architecture, row.seed)
            models = models or _load(case, run)
            behaviour = held_out(case.organism, models.tokenizer)
            tested = _tested(run, row, behaviour, models)
            atomic_write_json(file, [asdict(one) for one in tested])
        found += [CauseRow(**one) for one in read_json(file, list[CauseRow], REMEDY)]
    return found


def held_out(organism: Organism, tokenizer: Any) -> Behaviour:
    """An organism's behaviour texts up to where the last of its own words ends, and as much of
    their counterparts."""
    shown, elsewhere = [], []
    texts = zip(organism.behaviour_texts(), organism.ordinary_texts(), strict=True)
    for one, other in list(texts)[:TEXTS]:
        ids = tokenizer(_own(one), add_special_tokens=False)["input_ids"][:TOKENS]
        others = tokenizer(other.answer, add_special_tokens=False)["input_ids"][: len(ids)]
        shown.append(Answered(one.prompt, tokenizer.decode(ids)))
        elsewhere.append(Answered(other.prompt, tokenizer.decode(others)))
    return Behaviour(shown, elsewhere)


def _own(text: Text) -> str:
    return text.answer[: max(end for _, end in text.own)] if text.own else text.answer


def _load(case: Case, run: Run) -> _Pair:
    loading = run.loading(dtype="float32")
    base, tokenizer = loading.load(str(case.bench.base))
    organism, _ = loading.load(case.bench.partner(case.organism))
    return _Pair(base, organism, tokenizer)


def _tested(run: Run, row: Row, behaviour: Behaviour, models: _Pair) -> list[CauseRow]:
    entry = _listed(run, row)
    # Of what the base has more of, the organism has less.
    direction = entry.direction * (1 if entry.source == 1 else -1)
    steering = Steering(direction, run.ends[1].hookpoint)

    def row_of(model: Any, steering: Steering, settings: CauseSettings, other: Any) -> CauseRow:
        begun = time.perf_counter()
        found = cause(model, models.tokenizer, steering, behaviour, settings, reference=other)
        return _row(row, entry, found, time.perf_counter() - begun)

    return [
        row_of(models.base, steering, ADDING, None),
        row_of(models.organism, replace(steering, mode="ablate"), ABLATING, models.base),
    ]


def _row(row: Row, entry: Difference, found: Cause, seconds: float) -> CauseRow:
    assert row.rank is not None
    return CauseRow(
        organism=row.organism,
        pair=row.pair,
        text=row.text,
        architecture=row.architecture,
        seed=row.seed,
        rank=row.rank,
        kind=entry.kind,
        source=entry.source,
        latent=entry.latent,
        test=found.kind,
        effect=found.effect,
        low=found.interval[0],
        high=found.interval[1],
        random=[*found.random],
        strength=found.strength,
        span=found.span,
        verified=found.verified,
        sentence=found.sentence(),
        seconds=seconds,
    )


def _listed(run: Run, row: Row) -> Difference:
    """The entry in a row's place."""
    listed = list_differences(run, FilterConfig(outlier_multiple=run.config.outlier_multiple))
    assert row.rank is not None
    return (listed.findings if row.listed else listed.entries)[row.rank - 1]
