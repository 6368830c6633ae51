"""What the filter is told: thresholds, and the options of every command that filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..command_options import UsualOptions, group
from ..scorability import LEAST_FIRINGS, MIN_OWN

if TYPE_CHECKING:
    from ..runs.config import RunConfig
    from .verdicts import Thresholds


@dataclass
class FilterConfig:
    """Thresholds of the filter."""

    predictability: float = 0.5
    """Largest R2 from the other sources of a latent that is kept, as a multiple of that from its
    own source; of latents that fire on fewer than 1% of the pairs, as if they fired on so many."""

    shadow: float = 0.15
    """Largest effect on what is left of the other sources of a latent that is kept, as a multiple
    of its effect on what is left of its own."""

    min_own: float = MIN_OWN
    """Least R2 from its own source at which a latent is scorable."""

    min_firings: int = LEAST_FIRINGS
    """Least number of pairs on which a scorable latent fires, however clear all else is."""

    ridge: float = 1e-3
    """Ridge penalty of all regressions, as a multiple of the activations' mean variance."""

    pairs: int | None = None
    """Pairs to look at, at most: 131,072, and twice as many again and again while latents that
    fire cannot be judged. By default up to 1,048,576, as far as there are so many."""

    outlier_multiple: float = 2.0
    """Pairs are left out as in training: those whose norm exceeds this multiple of the median."""

    memory: float = 16e9
    """Bytes that judging may take; if all latents need more, they are looked at in several passes.
    """

    def __post_init__(self):
        if self.pairs is not None and self.pairs < 2:
            raise ValueError(f"The filter needs two pairs at least, got pairs={self.pairs}.")
        for name in ("predictability", "shadow", "ridge", "memory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    @property
    def thresholds(self) -> Thresholds:
        """What verdicts depend on."""
        from .verdicts import Thresholds

        return Thresholds(self.predictability, self.shadow, self.min_own, self.min_firings)


@dataclass(frozen=True)
class FilterOptions:
    """Options of every command that filters the latents of a run."""

    pairs: int | None = None
    """pairs to read at most: 131,072, and twice as many again while over 1 in 20 latents that fire
    cannot be judged (up to 1,048,576, as far as there are so many)"""

    predictability: float = FilterConfig.predictability
    """largest R2 from the other models, as a multiple of that from a latent's own ({default})"""

    shadow: float = FilterConfig.shadow
    """largest effect on what the other models have of their own, as a multiple of that on a
    latent's own ({default})"""

    min_firings: int = FilterConfig.min_firings
    """pairs on which a latent must fire to be scorable, however clear all else is ({default})"""

    usual: UsualOptions = group(UsualOptions)

    def config(self, run: RunConfig) -> FilterConfig:
        """Thresholds that leave out the pairs that the training of a run left out."""
        return FilterConfig(
            pairs=self.pairs,
            predictability=self.predictability,
            shadow=self.shadow,
            min_firings=self.min_firings,
            outlier_multiple=run.outlier_multiple,
        )
