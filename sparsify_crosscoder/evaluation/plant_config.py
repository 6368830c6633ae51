"""What is planted, how often, and how it is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Literal, NamedTuple

from ..scorability import FILTER_PAIRS

Kind = Literal["random", "token", "topic"]

KINDS: tuple[Kind, ...] = ("random", "token", "topic")
"""On random pairs; wherever one token occurs; on all pairs of the texts in which one occurs."""

Directions = Literal["isotropic", "activations"]
"""Drawn anywhere, or with the covariance of the source's activations, where models write more."""


class Cell(NamedTuple):
    """What is planted."""

    kind: Kind
    size: float
    """Length of what is added, in median norms of the source's centred activations."""

    frequency: float
    """Share of the pairs."""


@dataclass(frozen=True)
class PlantConfig:
    """What is planted, how often, and how it is looked for."""

    kinds: tuple[Kind, ...] = KINDS
    sizes: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
    """In median norms of the source's centred activations."""

    frequencies: tuple[float, ...] = (0.01, 0.003, 0.001, 0.0003)
    """Shares of the pairs."""

    replicates: int = 4
    """Of each kind, size and frequency, the sources in turn."""

    directions: Directions = "activations"
    together: int = 8
    """Plants of each source in one copy of the pairs, at most."""

    refit: float | None = None
    """Train from where the run ended, in this share of its steps; None: from zero, as the run was.
    Near the border of what is found a refit finds less."""

    pairs: int = FILTER_PAIRS
    """Pairs that each list reads, at most."""

    seed: int = 0

    def __post_init__(self):
        for name in ("kinds", "sizes", "frequencies"):
            if not getattr(self, name):
                raise ValueError(f"--{name} names nothing to plant.")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"There are plants {', '.join(KINDS)}, not {', '.join(unknown)}.")
        if min(self.sizes) <= 0:
            raise ValueError(f"--sizes are multiples of a norm, above 0, not {min(self.sizes):g}.")
        if not all(0 < share <= 0.5 for share in self.frequencies):
            raise ValueError("--frequencies are shares of the pairs, above 0 and up to 0.5.")
        for name in ("replicates", "together", "pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.refit is not None and not 0 < self.refit <= 1:
            raise ValueError(f"--refit is a share of the run's steps, not {self.refit:g}.")

    @property
    def cells(self) -> list[Cell]:
        """All kinds, sizes and frequencies."""
        return [Cell(*of) for of in product(self.kinds, self.sizes, self.frequencies)]

    @property
    def turns(self) -> list[int]:
        """Which source comes first in each: neighbours have others, so that none has all of a
        kind, a size or a frequency."""
        amounts = (self.kinds, self.sizes, self.frequencies)
        return [sum(of) for of in product(*(range(len(some)) for some in amounts))]

    @property
    def plants(self) -> int:
        """How many there are where each has its place."""
        return len(self.cells) * self.replicates

    def trainings(self, sources: int) -> int:
        """Copies of the pairs that these fill."""
        return ceil(self.plants / (sources * self.together))
