"""What the simplest methods see, in a report: beside the list of what differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sparsify_crosscoder.evaluation.baselines.found import METHODS, Found

from .sheets import Cell, Sheet, number
from .text import one_line

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.baselines.beside import BaselinesBeside

SHOWN = 3
"""Entries of each method."""

_LONGEST = 160


def baseline_sheet(found: BaselinesBeside, names: Sequence[str]) -> Sheet:
    """The first entries of every method, and which entries of the list are in the same texts."""
    same = _same(found)
    rows: list[list[Cell]] = []
    for method, (kind, unit, _) in METHODS.items():
        for one in found.baselines.of(method)[:SHOWN]:
            key = method if kind == "text" else f"{method} {one.rank}"
            interval = "" if one.interval is None else " ({:.3g} to {:.3g})".format(*one.interval)
            listed = ", ".join(map(str, same[key])) or "-"
            score = f"{one.score:.3g}{interval}"
            rows.append([method, number(one.rank), _said(one, names), score, unit, listed])
    texts = found.baselines.texts
    return Sheet(
        "What the simplest methods see",
        f"Without a crosscoder, on {texts:,} texts, the first {SHOWN} of each method; 95% "
        "intervals over texts (of a text over its pairs). Also listed: entries of the list of what "
        "differs that are in the same texts beyond chance.",
        ["method", "", "what was found", "score", "in", "also listed"],
        rows,
    )


def beside_sheet(found: BaselinesBeside) -> Sheet:
    """Entries of the list, and where the simplest methods rank the texts in which they are."""
    rows: list[list[Cell]] = []
    for one in found.beside.entries:
        rank = "-" if one.median_rank is None else f"{one.median_rank:g} by {one.method}"
        rows.append(
            [
                number(one.rank),
                ", ".join(map(str, one.texts[:SHOWN])) or "-",
                rank,
                f"{one.by_chance:g}",
                f"{one.common} ({one.common_by_chance:.1f} by chance)",
                ", ".join(one.also) or "only the crosscoder",
            ]
        )
    return Sheet(
        "What differs, beside the simplest methods",
        "Of entries that have a latent, by the texts in which it is most active. Rank: the median "
        "place of these texts in the order of the method that ranks them first; beside it what "
        "one method would come to by chance.",
        ["entry", "texts", "rank", "by chance", "common texts", "also seen by"],
        rows,
    )


def baseline_lines(found: BaselinesBeside, names: Sequence[str]) -> Iterator[str]:
    """The first entry of every method for a terminal, and what one side has alone."""
    yield "What the simplest methods see first:"
    same = _same(found)
    for method, (kind, unit, what) in METHODS.items():
        for one in found.baselines.of(method)[:1]:
            key = method if kind == "text" else f"{method} {one.rank}"
            listed = f"; also listed: {', '.join(map(str, same[key]))}" if same[key] else ""
            yield f"  {what}: {_said(one, names)} ({one.score:.3g} {unit}{listed})"
    entries = found.beside.entries
    alone = [str(one.rank) for one in entries if not one.also]
    if entries:
        yield (
            f"  Of {len(entries):,} entries of the list {len(entries) - len(alone):,} are in the "
            "same texts as something of these beyond chance"
            + (f"; only the crosscoder has {', '.join(alone[:10])}." if alone else ".")
        )


def _same(found: BaselinesBeside) -> dict[str, list[int]]:
    """Which entries of the list are in the same texts, by the baseline."""
    same: dict[str, list[int]] = defaultdict(list)
    for entry in found.beside.entries:
        for key in entry.also:
            same[key].append(entry.rank)
    return same


def _said(one: Found, names: Sequence[str]) -> str:
    """An entry in words, cut to a line."""
    whose = {"token": names[one.source], "perplexity": f"likelier to {names[one.source]}"}
    parts = (whose.get(one.method, ""), one.said, one.passage)
    return one_line(": ".join(part for part in parts if part), _LONGEST)
