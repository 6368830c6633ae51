"""What stands first in a report, in plain words for a terminal: the list of what differs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from sparsify_crosscoder.scorability import with_interval

from .baselines import baseline_lines
from .data import ReportData
from .finding import how_sure, latent_lines, what_differs, where_present
from .ranking import ranked
from .statements import NOTHING, doubts, model_names, would_have_found
from .text import one_line

FIRST = 5
WIDTH = 100


def first_entries(data: ReportData, count: int = FIRST) -> list[str]:
    """Lines on the first findings, then on latents that are flagged or kept and in none of these.

    Of a report without a list of differences, on the latents that stand first in it.
    """
    names = [one_line(name) for name in model_names(data)]
    if data.searched is None:
        return _latents(ranked(data)[:count], names) or [
            "No latent is flagged, kept by the filter or compared."
        ]
    findings = [row for row in data.differences if row["finding"]]
    lines = [f"What differs, the first {min(count, len(findings))} of {len(findings):,}:"]
    if not findings:
        lines = [NOTHING, *textwrap.wrap(would_have_found(data), WIDTH, break_on_hyphens=False)]
    for one in doubts(data):
        lines += textwrap.wrap(f"{one.about}: {one.number}. {one.meaning}", WIDTH)
    table = {row["latent"]: row for row in data.features.to_pylist()}
    for finding in findings[:count]:
        row = table.get(finding["latent"])
        lines += _wrapped(_finding(data, finding, row, names), finding["rank"])
    shown = {finding["rank"] for finding in findings[:count]}
    others = [
        row
        for row in ranked(data)
        if row["difference"] not in shown and (row["harmful"] or row["filter_verdict"] == "kept")
    ]
    simple = [] if data.baselines is None else baseline_lines(data.baselines, names)
    return [*lines, *_latents(others[:count], names), *simple]


def _finding(
    data: ReportData, finding: dict[str, Any], row: dict[str, Any] | None, names: Sequence[str]
) -> Iterator[str]:
    assert data.searched is not None
    yield what_differs(finding, names)
    yield where_present(finding, names, data.searched)
    if finding.get("q_value") is not None:
        yield how_sure(finding)
    if row is not None:
        detail = data.details(row["latent"]) if row["latent"] in data.detailed else None
        yield from latent_lines(row, detail, finding["source"], names)


def _wrapped(lines: Iterator[str], rank: int) -> Iterator[str]:
    yield ""
    for number, line in enumerate(lines):
        begins = f"{rank:>3}. " if number == 0 else " " * 5
        yield from textwrap.wrap(
            line, WIDTH, initial_indent=begins, subsequent_indent=" " * 7, break_on_hyphens=False
        )


def _latents(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Lines on latents, with a heading; none of nothing."""
    lines = ["What stands first:"] if rows else []
    for row in rows:
        own = "shared" if row["source"] is None else f"of {names[row['source']]}"
        facts = [f"latent {row['latent']}, {own}"]
        if row["filter_verdict"]:
            verdict = one_line(row["filter_verdict"]).replace("_", " ")
            score, error = row["filter_score"], row["filter_score_error"]
            scored = "" if score is None else f", score {with_interval(score, error)}"
            facts.append(f"filter: {verdict}{scored}")
        if row["likeness"] is not None:
            facts.append(f"likeness {row['likeness']:.2f}")
        if row["exclusivity"] is not None:
            facts.append(f"exclusivity {row['exclusivity']:.1f} of 5")
        lines.append(f"  {', '.join(facts)}")
        told = [("explanation", row["explanation"]), ("fires on", row["fires_on"])]
        told.append(("words around", row["characteristic_words"]))
        for s, name in enumerate(names[:2]):
            told.append((f"promotes in {name}", row[f"promoted_{s}"]))
        lines += [f"    {what}: {one_line(text)}" for what, text in told if text]
    return lines
