"""Sizes of toy benchmarks, and the architectures that they compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .model import HARDER, NONLINEAR, ToyConfig


@dataclass(frozen=True)
class Variant:
    """An architecture as it takes part in a benchmark."""

    arch: str
    """Its registered name."""

    options: dict[str, Any] = field(default_factory=dict)
    """What differs from its default configuration."""


VARIANTS = {
    "crosscoder": Variant("crosscoder"),
    "dsf": Variant("dsf"),
    "dfc-5%": Variant("dfc", {"exclusive_fractions": [0.05, 0.05]}),
    "dfc-10%": Variant("dfc", {"exclusive_fractions": [0.1, 0.1]}),
    "dfc-10%-joint": Variant("dfc", {"exclusive_fractions": [0.1, 0.1], "selection": "joint"}),
    "rdfc-10%": Variant("rdfc", {"exclusive_fractions": [0.1, 0.1]}),
}
"""What a benchmark can compare, by name."""


@dataclass(frozen=True)
class Preset:
    """One benchmark: a toy model, the dictionaries that are trained on it, and how."""

    toy: ToyConfig
    sizes: tuple[float, ...]
    """Latents of a dictionary as multiples of the number of concepts."""

    num_steps: int
    pairs_per_step: int
    lr: float
    dead_after: int
    """Pairs without firing after which the auxiliary loss revives a latent."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    num_seeds: int = 5
    num_snapshots: int = 20
    """How often recovery is measured during a run."""

    evaluation_pairs: int = 131_072
    """Pairs, not of the training, for the filter and for counting which latents are alive."""

    @property
    def k(self) -> int:
        """Active latents per pair: as many as there are active concepts."""
        return max(round(self.toy.concepts_per_pair), 1)


SMALL = Preset(
    # The paper's exponential decay falls by a factor of exp(0.001 * 2048) over all concepts.
    ToyConfig(num_concepts=256, width=64, exclusive_ratio=0.1, mean_active=3, decay=0.008),
    sizes=(0.5, 1.0),
    num_steps=2_500,
    pairs_per_step=1_024,
    lr=1e-3,
    dead_after=256_000,
    # The rarest concepts fire on 1 pair in 2,000.
    evaluation_pairs=262_144,
)
MEDIUM = replace(
    SMALL,
    evaluation_pairs=131_072,
    toy=ToyConfig(num_concepts=1_024, width=128, mean_active=8, decay=0.002),
    sizes=(0.25, 0.5, 1.0, 1.5),
    num_steps=20_000,
    dead_after=2_000_000,
)
PAPER = Preset(
    ToyConfig(),
    sizes=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    num_steps=390_625,  # 800M pairs
    pairs_per_step=2_048,
    lr=1e-4,
    dead_after=10_000_000,
    num_snapshots=100,
)
PRESETS = {"small": SMALL, "medium": MEDIUM, "paper": PAPER} | {
    f"{name}-{kind}": replace(preset, toy=replace(preset.toy, **changes))
    for name, preset in (("small", SMALL), ("medium", MEDIUM), ("paper", PAPER))
    for kind, changes in (("hard", HARDER), ("nonlinear", NONLINEAR))
}
"""Benchmarks by name: `hard` ones have sources that disagree, `nonlinear` ones bend B as well."""
