"""Which shared latents are compared, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EquivalenceConfig:
    """Which shared latents are looked at, and how."""

    latents: Sequence[int] | None = None
    """These; None for some that are drawn of all that fire often enough."""

    count: int = 20
    """Latents that are drawn."""

    texts: int = 16
    """Texts to read, the first 128 pairs of each, of those that the run held out."""

    controls: int = 2
    """Other shared latents whose direction is taken from the second model instead, as much of it as
    the latent writes there."""

    seed: int = 0

    first: Sequence[int] = ()
    """Latents that come before those that are drawn, if they are shared and fire often enough."""

    def __post_init__(self):
        if self.controls < 1 or self.count < 1:
            raise ValueError("--controls and --sample must be at least 1.")
