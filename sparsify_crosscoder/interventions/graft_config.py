"""What grafts and patches are tried on, and how often."""

from __future__ import annotations

from dataclasses import dataclass

TEXTS = 24


@dataclass(frozen=True)
class GraftConfig:
    """On what a reconstruction is tried, and how."""

    texts: int = TEXTS
    """texts to read, the first 128 pairs of each, of those that the run held out ({default})"""

    strength: float = 1.0
    """how far activations are moved to the reconstruction; 0 changes no bit ({default})"""


@dataclass(frozen=True)
class PatchConfig:
    """On what is patched, and how often."""

    texts: int = TEXTS
    """texts to read, the first 128 pairs of each, of those that the run held out ({default})"""

    entries: int = 3
    """how many of the first listed differences to patch one at a time ({default})"""

    random: int = 5
    """random clusters of equal size, or directions, beside each of them ({default})"""

    def __post_init__(self):
        if self.entries < 0 or self.random < 0:
            raise ValueError("--entries and --random must not be negative.")
