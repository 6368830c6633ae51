"""How much of what was planted was found: recall by kind, size and frequency, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from ..intervals import rate_interval
from .plant_config import KINDS, Cell


@dataclass(frozen=True)
class PlantFound:
    """One plant, and where in the list it is."""

    kind: str
    size: float
    frequency: float
    replicate: int
    source: int
    pairs: int
    """Pairs that have it."""

    token: int | None
    """That says where it is, in the source's vocabulary."""

    finding: bool
    """Whether an entry that has its direction is a finding."""

    rank: int | None
    """Of the first such entry in the list, from 1 on; None where there is none."""

    entry: str | None
    """That entry's kind, as in the list."""

    score: float | None
    cosine: float
    """Of its direction with what was planted; where there is none, the best of any entry."""

    @property
    def cell(self) -> Cell:
        return Cell(self.kind, self.size, self.frequency)  # pyright: ignore[reportArgumentType]

    @property
    def listed(self) -> bool:
        """Whether `filter --all` lists it."""
        return self.rank is not None


@dataclass(frozen=True)
class Round:
    """What one list says of several plants."""

    planted: bool
    """Whether they were there."""

    plants: list[PlantFound]
    findings: int
    """All that the list has, of plants or not."""

    seconds: float


class Recall(NamedTuple):
    """How many of some plants were found."""

    found: int
    of: int

    @property
    def rate(self) -> float:
        return self.found / max(self.of, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95%; all of it where nothing was planted."""
        return rate_interval(self.found, self.of)

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "recall": self.rate, "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.found} of {self.of} ({low:.0%} to {high:.0%})" if self.of else "-"


@dataclass(frozen=True)
class PlantedRecall:
    """What was planted into a run's pairs, what was found of it, and what without it."""

    rounds: list[Round]
    """With the plants."""

    nothing: Round
    """The same plants looked up where none was planted."""

    nowhere: list[Cell]
    """Of each plant that no place of the store is for, or none that is left."""

    settings: dict[str, Any]
    steps: int
    """That each training took."""

    @property
    def plants(self) -> list[PlantFound]:
        return [one for some in self.rounds for one in some.plants]

    @property
    def found_without(self) -> int:
        """Directions that are findings where nothing was planted."""
        return sum(one.finding for one in self.nothing.plants)

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in (*self.rounds, self.nothing))

    def recall(
        self, which: Callable[[PlantFound], bool] = lambda one: True, *, listed: bool = False
    ) -> Recall:
        """Of some of the plants, how many are findings, or in the list at all."""
        some = [one for one in self.plants if which(one)]
        return Recall(sum(one.listed if listed else one.finding for one in some), len(some))

    def to_dict(self) -> dict[str, Any]:
        cells = dict.fromkeys([one.cell for one in self.plants] + self.nowhere)
        return {
            "settings": self.settings,
            "steps": self.steps,
            "seconds": self.seconds,
            "recall": self.recall().to_dict(),
            "found_without": self.found_without,
            "findings_without": self.nothing.findings,
            "cells": [
                cell._asdict()
                | self._of(cell).to_dict()
                | {"listed": self._of(cell, listed=True).found}
                for cell in cells
            ],
            "nowhere": [cell._asdict() for cell in self.nowhere],
            "plants": [asdict(one) for one in self.plants],
            "without": [asdict(one) for one in self.nothing.plants],
        }

    def _of(self, cell: Cell, *, listed: bool = False) -> Recall:
        return self.recall(lambda one: one.cell == cell, listed=listed)

    def text(self) -> str:
        """The table, and what it was compared with."""
        total, of = self.recall(), len(self.nothing.plants)
        lines = [
            "What would have been found: how many differences of a known direction, planted into "
            "the run's own activations, are findings (95% interval)",
            "",
            *self.table(),
            "",
            f"In all {total} are findings{self._ranks()}, and {self.recall(listed=True).found} are "
            f"in the list with --all. With nothing planted, {self.found_without} of the {of} "
            f"directions are findings, of which the list then has {self.nothing.findings:,}.",
            "Sizes are in median norms of the centred activations, shares are of the pairs. A "
            "plant changes nothing that the models say, so no KL of the next tokens is asked for.",
            f"{len(self.rounds)} trainings of {self.steps:,} steps with plants, and all lists, "
            f"took {self.seconds:,.0f} s.",
        ]
        if self.nowhere:
            some = [f"{cell.kind} {share_text(cell.frequency)}" for cell in self.nowhere]
            lines.append(
                f"{len(some)} more had no place, as no token or text has such a share of the "
                f"pairs, or none was left: {', '.join(dict.fromkeys(some))}"
            )
        return "\n".join(lines)

    def _ranks(self) -> str:
        ranks = [one.rank for one in self.plants if one.finding and one.rank is not None]
        return f" (half of them at rank {median(ranks):.0f} or before)" if ranks else ""

    def sentence(self) -> str:
        """How many were found, in all and of each size and share."""
        each = [
            f"at {size_text(size)} of the median norm "
            + ", ".join(
                f"{recall.found} of {recall.of} on {share_text(share)} of the pairs"
                for share, recall in self._by_share(size)
            )
            for size in sorted({one.size for one in self.plants}, reverse=True)
        ]
        total = self.recall()
        return f"Of differences planted into this pair {total} were found: {'; '.join(each)}."

    def missed(self) -> str:
        """What the list does not have of them, in a line."""
        recall, (low, high) = self.recall(), self.recall().interval
        return (
            f"{recall.of - recall.found} of {recall.of} differences that were planted would have "
            f"been missed ({1 - high:.0%} to {1 - low:.0%})"
        )

    def _by_share(self, size: float) -> list[tuple[float, Recall]]:
        plants = [one for one in self.plants if one.size == size]
        shares = sorted({one.frequency for one in plants}, reverse=True)
        found = {share: [one for one in plants if one.frequency == share] for share in shares}
        return [
            (share, Recall(sum(one.finding for one in some), len(some)))
            for share, some in found.items()
        ]

    def table(self) -> list[str]:
        """A Markdown table of the `rows`."""
        return _aligned(self.rows())

    def rows(self) -> list[list[str]]:
        """A heading, then a line per kind and size, and for all kinds together."""
        cells = [one.cell for one in self.plants] + self.nowhere
        kinds = sorted({cell.kind for cell in cells}, key=KINDS.index)
        sizes = sorted({cell.size for cell in cells}, reverse=True)
        shares = sorted({cell.frequency for cell in cells}, reverse=True)
        rows = [["planted", "size", *map(share_text, shares)]]
        together = [tuple(kinds)] if len(kinds) > 1 else []
        for some in (*((kind,) for kind in kinds), *together):
            for size in sizes:
                recalls = [
                    self.recall(
                        lambda one, share=share, size=size, some=some: (
                            one.kind in some and (one.size, one.frequency) == (size, share)
                        )
                    )
                    for share in shares
                ]
                name = some[0] if len(some) == 1 else "all kinds"
                rows.append([name, size_text(size), *map(str, recalls)])
        return rows


def share_text(frequency: float) -> str:
    """As 0.3%."""
    return f"{100 * frequency:.3g}%"


def size_text(size: float) -> str:
    """As 1/8."""
    parts = 1 / size
    return f"1/{parts:.0f}" if size < 1 and abs(parts - round(parts)) < 1e-6 else f"{size:g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return [f"| {line} |" for line in lines]
