"""Whether the entry that concerns an organism's behaviour causes it, by held-out texts.

The entry's direction is what its latent writes in the organism, less what it writes in the base:
it is added to the base, and ablated in the organism, where the base's own component at each token
takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from organism_runs import trained
from organism_scores import Row
from organism_settings import REMEDY, Case
from organisms import Organism
from organisms.organism import Text

from sparsify_crosscoder import Run, list_differences
from sparsify_crosscoder.evaluation.top import largest_activations
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.answer_likelihood import Answered
from sparsify_crosscoder.interventions.cause import Behaviour, Cause, CauseSettings, cause
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.records import read_json

TEXTS = 12
"""Of each kind, at most."""

TOKENS = 48
"""Of an answer, at most."""

S_MAX_PAIRS = 100_000

ADDING = CauseSettings(strengths=(0.5,))
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

    latent: int
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
    """Multiple of the latent's largest activation."""

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
    crosscoder = run.crosscoder()
    latent = _listed_latent(run, row) if row.latent is None else row.latent
    decoders = [crosscoder.decoder(s)[latent].detach().float().cpu() for s in (0, 1)]
    factors = crosscoder.factors.tolist()
    # Of an exclusive latent one of the two is 0.
    base, organism = (decoder / factor for decoder, factor in zip(decoders, factors, strict=True))
    chunks = run.first_pairs(S_MAX_PAIRS, crosscoder.device).chunks
    wanted, multiple = torch.tensor([latent]), run.config.outlier_multiple
    largest = largest_activations(crosscoder, chunks, wanted, multiple)
    steering = Steering(organism - base, run.ends[1].hookpoint, scale=float(largest))
    source = int(organism.norm() > base.norm())

    def row_of(model: Any, steering: Steering, settings: CauseSettings, other: Any) -> CauseRow:
        begun = time.perf_counter()
        found = cause(model, models.tokenizer, steering, behaviour, settings, reference=other)
        return _row(row, (source, latent), found, time.perf_counter() - begun)

    return [
        row_of(models.base, steering, ADDING, None),
        row_of(models.organism, replace(steering, mode="ablate"), ABLATING, models.base),
    ]


def _row(row: Row, place: tuple[int, int], found: Cause, seconds: float) -> CauseRow:
    assert row.rank is not None and row.kind is not None
    source, latent = place
    return CauseRow(
        organism=row.organism,
        pair=row.pair,
        text=row.text,
        architecture=row.architecture,
        seed=row.seed,
        rank=row.rank,
        kind=row.kind,
        source=source,
        latent=latent,
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


def _listed_latent(run: Run, row: Row) -> int:
    """The latent in a row's place, of rows that do not say it."""
    listed = list_differences(run)
    shown = listed.findings if row.listed else listed.entries
    assert row.rank is not None
    latent = shown[row.rank - 1].latent
    assert latent is not None
    return latent
