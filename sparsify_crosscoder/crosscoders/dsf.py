"""The Designated Shared Feature crosscoder (B.3), adapted to BatchTopK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import CrosscoderConfig
from ..registry import Architecture
from .crosscoder import Crosscoder
from .partition import Partition


@dataclass
class DSFConfig(CrosscoderConfig):
    """Designated Shared Feature crosscoder: a block whose decoder is tied across sources (B.3)."""

    designated_fraction: float = 0.1  # B.3
    """Fraction of the latents in the designated shared block."""

    designated_k_multiplier: float = 2.0  # B.3
    """How much denser the designated block is than its share of the latents."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.designated_fraction < 1:
            raise ValueError(
                f"designated_fraction must lie between 0 and 1, got {self.designated_fraction}."
            )
        if self.designated_k_multiplier <= 0:
            raise ValueError(
                f"designated_k_multiplier must be positive, got {self.designated_k_multiplier}."
            )


class DesignatedSharedFeatureCrosscoder(Crosscoder):
    """Crosscoder with a dense block whose latents have one decoder vector for all sources.

    Raises ValueError if the sources' widths differ, since a tied decoder fits only equal widths.
    """

    arch = "dsf"
    config_class = DSFConfig

    @classmethod
    def make_partition(
        cls, num_latents: int, d_sources: Sequence[int], cfg: DSFConfig
    ) -> Partition:
        if len(set(d_sources)) > 1:
            raise ValueError(
                f"DSF ties decoders across sources and so needs equal widths, got "
                f"{list(d_sources)}. Use --arch dfc or --arch crosscoder, or models of one width."
            )
        everything = tuple(range(len(d_sources)))
        designated = round(cfg.designated_fraction * num_latents)
        if not 0 < designated < num_latents:
            raise ValueError(
                f"designated_fraction={cfg.designated_fraction} of {num_latents} latents leaves "
                f"one of the two blocks empty; change it or raise num_latents."
            )
        fraction = designated / num_latents
        return Partition.build(
            len(d_sources),
            [
                ("designated", designated, everything),
                ("rest", num_latents - designated, everything),
            ],
            [cfg.designated_k_multiplier * fraction, 1 - fraction],
            tied=["designated"],
        )


DSF = Architecture(
    "dsf",
    DSFConfig,
    DesignatedSharedFeatureCrosscoder,
    description=(
        "designated shared features: a dense block with tied decoders (equal widths only)"
    ),
)
