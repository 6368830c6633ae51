"""The Designated Shared Feature crosscoder (B.3), adapted to BatchTopK."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import DSFConfig
from .base import Crosscoder
from .partition import Partition


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
