"""What the list has at a share of false entries that is told by nulls of other seeds.

The nulls of a crosscoder are the organisms without a behaviour, by crosscoders of all other seeds:
what is found in a crosscoder of a null is told by other crosscoders, so it can be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from organism_scores import Row
from organisms import NOTHING
from step_report import table

from sparsify_crosscoder.evaluation.difference_score import LEAST_STRENGTH
from sparsify_crosscoder.evaluation.error_rates import NullList, error_rates
from sparsify_crosscoder.intervals import rate_interval

LARGEST_Q = 0.1
_NOTHING = {organism.name for organism in NOTHING}


@dataclass(frozen=True)
class Kept:
    """What of a list is kept by a rule."""

    entries: int
    concerning: int
    first: int | None
    """Place among them of the first that concerns the behaviour."""

    @classmethod
    def of(cls, row: Row, kept: Sequence[bool]) -> Kept:
        """Of a row's entries that could be findings, those that are kept."""
        right = [concerns for concerns, keep in zip(row.concerning, kept, strict=True) if keep]
        return cls(len(right), sum(right), right.index(True) + 1 if any(right) else None)


def kept_by_q(row: Row, rows: Sequence[Row]) -> Kept | None:
    """What is kept at the largest q, by the nulls among all rows; None without any."""
    alike = (row.pair, row.text, row.architecture)
    nulls = [
        NullList(one.organism, torch.tensor(one.scores, dtype=torch.float64), one.tested)
        for one in rows
        if one.organism in _NOTHING
        and one.tested
        and one.seed != row.seed
        and (one.pair, one.text, one.architecture) == alike
    ]
    if not nulls or not row.tested:
        return None
    scores = torch.tensor(row.scores, dtype=torch.float64)
    rates = error_rates(scores, row.tested, nulls)
    return Kept.of(row, [rate.q_value <= LARGEST_Q for rate in rates])


def kept_by_default(row: Row) -> Kept:
    """What is a finding by default."""
    return Kept.of(row, row.found)


def error_rate_table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table: what both rules keep, the seeds side by side."""
    head = ["organism", "pair", "text", "architecture"]
    head += [f"q <= {LARGEST_Q}: entries", "concerning", "first"]
    head += [f"strength >= {LEAST_STRENGTH}: entries", "concerning", "first"]
    cells = []
    for key in dict.fromkeys((row.organism, row.pair, row.text, row.architecture) for row in rows):
        mine = [r for r in rows if (r.organism, r.pair, r.text, r.architecture) == key]
        by_q = [kept_by_q(row, rows) for row in mine]
        if None in by_q:
            continue
        told = [[one for one in by_q if one is not None], [kept_by_default(row) for row in mine]]
        line = [*key]
        for kept in told:
            line.append(", ".join(str(one.entries) for one in kept))
            line.append(", ".join(str(one.concerning) for one in kept))
            line.append(", ".join(str(one.first or "never") for one in kept))
        cells.append(line)
    return table(head, cells)


def false_share(rows: Sequence[Row]) -> str:
    """Of the nulls' crosscoders, in how many anything is kept, and how much of what could be."""
    nulls = [row for row in rows if row.organism in _NOTHING]
    told = [(row, kept) for row in nulls if (kept := kept_by_q(row, rows)) is not None]
    if not told:
        return "no crosscoders of nulls"
    some = sum(kept.entries > 0 for _, kept in told)
    entries, tested = sum(kept.entries for _, kept in told), sum(row.tested for row, _ in told)
    low, high = rate_interval(some, len(told))
    return (
        f"at q <= {LARGEST_Q} anything is kept in {some} of {len(told)} crosscoders of nulls "
        f"({low:.2f} to {high:.2f}), {entries} entries of {tested:,} that could have been"
    )
