"""All that is to be said on how far a report is to be trusted, from its data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import mean, median
from typing import Any, Literal, NamedTuple

from sparsify_crosscoder.harvest.model_identity import source_names

from . import trust
from .data import ReportData
from .trust import Statement

Kind = Literal["shared", "random"]
KINDS: tuple[Kind, ...] = ("shared", "random")
LOOKED_AT = 50  # latents with details, for the number of prompts


NOTHING = "No difference between the models reaches the strength of a finding."


class Spread(NamedTuple):
    """Mean and range of some scores."""

    number: int
    mean: float
    low: float
    high: float


def statements(data: ReportData) -> list[Statement]:
    """Every statement that the data allow, the bad ones first."""
    return sorted(_statements(data), key=lambda one: trust.LEVELS.index(one.level))


def null_values(data: ReportData, source: int | None, kind: Kind, what: str) -> list[float]:
    """Values of a field of `null_scores`, of one source and kind, without those that have none."""
    return [
        one[what]
        for one in data.null_scores
        if one["kind"] == kind and one["source"] == source and one.get(what) is not None
    ]


def spread(values: list[float]) -> Spread | None:
    """None of nothing."""
    return Spread(len(values), mean(values), min(values), max(values)) if values else None


def would_have_found(data: ReportData) -> str:
    """What an empty list is worth, in a sentence."""
    if data.power is None:
        return f"What would have been found is not known. {trust.NO_POWER.meaning}"
    return data.power.sentence()


def doubts(data: ReportData) -> list[Statement]:
    """What makes the whole list doubtful: that a model is not told of, or not reconstructed."""
    names = model_names(data)
    of_pairs = [*_of_pairs(data, names), *(_reconstruction(data, s) for s in range(len(names)))]
    return [one for one in of_pairs if one is not None and one.level == "bad"]


def model_names(data: ReportData) -> list[str]:
    """A short name of every source, all different: see `source_names`."""
    short = source_names(data.models)
    if len(set(short)) < len(short):
        short = [f"{name} ({s})" for s, name in enumerate(short)]
    return short


def column(data: ReportData, name: str) -> list[Any]:
    """A column of the table of latents."""
    return data.features[name].to_pylist()


def scores_of(data: ReportData, source: int) -> list[float]:
    """Exclusivity scores of the latents that are called exclusive to a source."""
    rows = zip(column(data, "source"), column(data, "exclusivity"), strict=True)
    return [score for own, score in rows if own == source and score is not None]


def likeness_of(data: ReportData, source: int) -> list[float]:
    """Likeness of the effects of the latents that are called exclusive to a source."""
    rows = zip(column(data, "source"), column(data, "likeness"), strict=True)
    return [value for own, value in rows if own == source and value is not None]


def prompts_per_score(data: ReportData) -> int | None:
    """How many prompts an exclusivity score is usually the mean of; None if that is not known."""
    counts = []
    for detail in islice(map(data.details, data.detailed), LOOKED_AT):
        judged = (
            [one for one in detail.judgements if one.question == "similarity"] if detail else []
        )
        counts += [len(judged)] if judged else []
    return round(median(counts)) if counts else None


def _statements(data: ReportData) -> Iterator[Statement]:
    yield trust.judge(data.judge)
    if data.judged:
        yield from filter(None, _of_judging(data))
    if not data.nulls:
        yield trust.NO_ERROR_RATE
    yield from map(trust.null_rate, data.nulls)
    yield trust.NO_POWER if data.power is None else trust.power(data.power)
    compared = _of_exclusivity if data.judged else _of_likeness
    yield from filter(None, compared(data))
    yield from filter(None, _of_training(data))
    yield trust.stability(data.stability)


def _of_judging(data: ReportData) -> Iterator[Statement | None]:
    yield trust.answered("flags", column(data, "flag_status"), ("unparsable", "failed"))
    asked = column(data, "exclusivity_status") + [one["status"] for one in data.null_scores]
    yield trust.answered("exclusivity", asked, ("unanswered",))
    tests = ("detection_score", "detection_held_out", "detection_quantiles")
    yield trust.detection(*([x for x in column(data, name) if x is not None] for name in tests))


def _of_exclusivity(data: ReportData) -> Iterator[Statement | None]:
    names = model_names(data)
    scores = [x for x in column(data, "exclusivity") if x is not None]
    if not scores and not data.null_scores:
        yield Statement(
            "Exclusivity scores",
            "caution",
            "none",
            "Nothing was steered and compared: no difference was tried out on the models.",
        )
        return
    nulls = {
        f"{'shared latents' if kind == 'shared' else 'random directions'}": sum(
            len(null_values(data, s, kind, "score")) for s in range(len(names))
        )
        for kind in KINDS
    }
    yield trust.sample_sizes(len(scores), nulls)
    for s, name in enumerate(names):
        for kind in KINDS:
            yield trust.against_null(name, kind, *_alike(data, s, kind))
    rows = list(
        zip(
            *(column(data, f"exclusivity{end}") for end in ("", "_spread", "_blinded")), strict=True
        )
    )
    with_spread = [(score, one) for score, one, _ in rows if None not in (score, one)]
    if with_spread:
        first, second = map(list, zip(*with_spread, strict=True))
        yield trust.spread(first, second, prompts_per_score(data))
    both = [(score, blinded) for score, _, blinded in rows if None not in (score, blinded)]
    yield trust.blinding([a for a, _ in both], [b for _, b in both])
    yield from _of_stitching(data, names)


def _alike(data: ReportData, source: int, kind: Kind) -> tuple[list[float], list[float], bool]:
    """Scores of exclusive latents and of what they are compared with, and whether they are chosen
    alike: of latents those are compared that passed the detection test, where some of both did."""
    passed = [
        row["exclusivity"]
        for row in data.features.to_pylist()
        if row["source"] == source and row["interpretable"] and row["exclusivity"] is not None
    ]
    nulls = [
        one
        for one in data.null_scores
        if (one["kind"], one["source"]) == (kind, source) and one["score"] is not None
    ]
    beside = [one["score"] for one in nulls if kind == "random" or one.get("interpretable")]
    asked = kind == "random" or all(one.get("interpretable") is not None for one in nulls)
    if asked and passed and beside:
        return passed, beside, True
    return scores_of(data, source), null_values(data, source, kind, "score"), False


def _of_likeness(data: ReportData) -> Iterator[Statement | None]:
    names = model_names(data)
    for s, name in enumerate(names):
        for kind in KINDS:
            nulls = null_values(data, s, kind, "likeness")
            yield trust.likeness_against_null(name, kind, likeness_of(data, s), nulls)
    yield from _of_stitching(data, names)


def _of_stitching(data: ReportData, names: list[str]) -> Iterator[Statement]:
    if data.stitching.get("identity"):
        yield trust.shared_basis(names[0], names[1], data.stitching["r2"])
    for direction in data.stitching.get("directions", []):
        yield trust.stitching(names[direction["from"]], names[direction["to"]], direction)


def _of_training(data: ReportData) -> Iterator[Statement | None]:
    names, summary = model_names(data), data.summary
    if summary.get("pairs") and summary.get("num_latents"):
        yield trust.pairs(summary["pairs"], summary["num_latents"])
    yield from _of_pairs(data, names)
    for s, name in enumerate(names):
        dead = _at(summary.get("dead_fraction_exclusive"), s)
        yield _reconstruction(data, s)
        if (lost := _at(data.grafted.get("models"), s)) is not None:
            yield trust.grafted(name, lost)
        yield trust.dead(name, dead)
        verdicts = _at(data.filter.get("verdicts"), s)
        yield trust.not_scorable(name, verdicts) if verdicts else None


def _of_pairs(data: ReportData, names: list[str]) -> Iterator[Statement]:
    for s, untold in ({} if data.searched is None else data.searched.untold).items():
        yield trust.told(names[s], untold)


def _reconstruction(data: ReportData, source: int) -> Statement | None:
    keys = ("fve_per_source", "fve_without_top5_per_source")
    fve, without = (_at(data.summary.get(key), source) for key in keys)
    return trust.reconstruction(model_names(data)[source], fve, without)


def _at(values: Any, place: int) -> Any:
    """One of a list that may be missing or shorter."""
    return values[place] if values and place < len(values) else None
