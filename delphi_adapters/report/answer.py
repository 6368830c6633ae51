"""The first screen of a report, in sentences: what differs, how sure that is, what was missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..pictures.finding_list import PNG, SVG, Entry, Picture, can_write_png, finding_list
from .coherent import NO_TEXT
from .data import FeatureDetail, ReportData
from .finding import how_sure, marked, what_differs, where_present
from .sheets import number
from .statements import NOTHING, doubts, model_names, would_have_found
from .text import one_line

FINDINGS = 3
DRAWN = 10
NO_RATE = "How sure that is, is not known: no error rate was measured."


class Part(NamedTuple):
    """A paragraph that begins with what matters."""

    lead: str
    text: str


def answer(data: ReportData) -> list[Part]:
    """Paragraphs on the first findings and on what was not found; none of a report without a list.

    Texts of models and corpora are on one line each, and cut.
    """
    if data.searched is None:
        return []
    names, found = [one_line(name) for name in model_names(data)], _findings(data)
    parts = [Part(_counted(data, names, len(found)), "")]
    table = {row["latent"]: row for row in data.features.to_pylist()}
    for finding in found[:FINDINGS]:
        what = what_differs(finding, names)
        sentences = _sentences(data, finding, table.get(finding["latent"]), names)
        parts.append(Part(f"{finding['rank']}. {what[0].upper()}{what[1:]}.", " ".join(sentences)))
    parts += [Part(f"{one.about}: {one.number}.", one.meaning) for one in doubts(data)]
    return [*parts, Part("What was not found.", not_found(data))]


def not_found(data: ReportData) -> str:
    """What the list misses, by what was planted, or that nobody knows."""
    if data.power is None:
        return would_have_found(data)
    limits = "Differences smaller or rarer than these were not tried."
    return f"{would_have_found(data)} {data.power.missed()}. {limits}"


def picture_of(data: ReportData) -> Picture:
    """The list of findings as a picture, with the numbers of the list."""
    names, found = [one_line(name) for name in model_names(data)], _findings(data)
    told = {r["latent"]: r["explanation"] or r["fires_on"] or "" for r in data.features.to_pylist()}
    entries = []
    for one in found[:DRAWN]:
        values = f"score {number(one['score'])}, {_sure(one)}"
        about = one_line(told.get(one["latent"], ""))
        what = what_differs(one, names)
        entries.append(Entry(one["rank"], what, about, one["source"], one["score"], values))
    if data.searched is None:
        return finding_list(one_line(data.title), [], ["No list of differences was made."])
    notes = [_counted(data, names, len(found)), f"What was not found. {not_found(data)}"]
    return finding_list(one_line(data.title), entries, notes)


def picture_files() -> list[str]:
    """Names of the pictures that are written; a PNG only where matplotlib is installed."""
    return [SVG, PNG] if can_write_png() else [SVG]


def _findings(data: ReportData) -> list[dict[str, Any]]:
    return [row for row in data.differences if row["finding"]]


def _counted(data: ReportData, names: Sequence[str], count: int) -> str:
    if not count or data.searched is None:
        return NOTHING
    found = f"{count:,} difference{'s' if count > 1 else ''} between {' and '.join(names)}"
    return f"{found} in {data.searched.texts:,} texts."


def _sure(finding: Mapping[str, Any]) -> str:
    if finding.get("q_value") is None:
        return "no error rate known"
    low, high = finding["q_interval"]
    return f"q {number(finding['q_value'])} ({number(low)} to {number(high)})"


def _sentences(
    data: ReportData, finding: dict[str, Any], row: dict[str, Any] | None, names: Sequence[str]
) -> Iterator[str]:
    assert data.searched is not None
    detail = data.details(row["latent"]) if row and row["latent"] in data.detailed else None
    if row and (told := row["explanation"] or row["characteristic_words"] or row["fires_on"]):
        yield f"About: {one_line(told)}."
    yield where_present(finding, names, data.searched)
    sure = finding.get("q_value") is not None
    yield f"{_sure(finding)}: {how_sure(finding)}" if sure else NO_RATE
    if row and (tokens := row.get(f"promoted_{finding['source']}")):
        yield f"It promotes {one_line(tokens)}."
    yield from _steered(row, detail)
    if detail and detail.contexts:
        yield f"Example: {marked(detail.contexts[0], finding['source'])}"


def _steered(row: Mapping[str, Any] | None, detail: FeatureDetail | None) -> Iterator[str]:
    if row is None:
        yield "It has no latent to steer with."
        return
    outputs = detail.outputs if detail else None
    likeness, exclusivity = row["likeness"], row["exclusivity"]
    if likeness is None and exclusivity is None and outputs is None:
        yield "It was not steered with."
    if likeness is not None:
        alike = f"{likeness:.2f} (1: the same)"
        yield f"Steered with it, both models' next words change alike by {alike}."
    if exclusivity is not None:
        yield f"Steered with it, the exclusivity of its effect is {exclusivity:.1f} of 5."
    said = (
        list(zip(outputs.strengths, outputs.answers[0][0], strict=False))
        if outputs and outputs.prompts
        else []
    )
    coherent = [(strength, text) for strength, text in said if strength and text != NO_TEXT]
    if outputs and coherent:
        strength, text = coherent[-1]
        yield (
            f"At strength {strength:g} {one_line(outputs.models[0])} answers "
            f"“{one_line(outputs.prompts[0], 80)}” with “{one_line(text)}”."
        )
