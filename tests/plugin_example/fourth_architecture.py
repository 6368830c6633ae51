"""A crosscoder in which only the first model has latents of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsify_crosscoder import (
    Architecture,
    Crosscoder,
    CrosscoderConfig,
    CrosscoderTrainer,
    Partition,
)


@dataclass
class OneSidedConfig(CrosscoderConfig):
    """One-sided crosscoder: latents of the first model, then shared ones."""

    first_fraction: float = 0.25
    """Fraction of the latents that only the first model reads and writes."""


class OneSidedCrosscoder(Crosscoder):
    """Crosscoder with one exclusive block, the first model's."""

    arch = "one_sided"
    config_class = OneSidedConfig

    @classmethod
    def make_partition(
        cls, num_latents: int, d_sources: Sequence[int], cfg: OneSidedConfig
    ) -> Partition:
        first = round(cfg.first_fraction * num_latents)
        everything = tuple(range(len(d_sources)))
        return Partition.build(
            len(d_sources),
            [("exclusive_0", first, (0,)), ("shared", num_latents - first, everything)],
        )


ONE_SIDED = Architecture(
    name="one_sided",
    config_class=OneSidedConfig,
    coder_class=OneSidedCrosscoder,
    trainer_class=CrosscoderTrainer,
    description="latents exclusive to the first model, and shared ones",
)
