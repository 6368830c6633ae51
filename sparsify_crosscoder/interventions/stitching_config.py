"""How two models are stitched together, and on which text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datasets import Dataset

    from ..runs.config import RunConfig


@dataclass
class StitchingConfig:
    """How two sources are stitched together."""

    sources: tuple[int, int] = (0, 1)
    """Which two sources of the stream to stitch."""

    inversion_weight: float = 0.1
    """Weight of the two round trips' errors (A to B to A, B to A to B) beside those of the two
    maps. More makes the maps more nearly inverse to each other, and explains less."""

    init: Literal["closed_form", "random"] = "closed_form"
    """Where training begins: at the least-squares maps, or at random ones, which need a larger
    learning rate and several times the steps."""

    ridge: float = 1e-4
    """Ridge penalty of the least-squares maps, as a multiple of the mean variance of what is
    read."""

    learning_rate: float = 1e-3
    """Learning rate of Adam at the first step, from which it falls linearly to 0."""

    steps: int = 200
    """Training steps. 0 keeps the maps that training would begin at."""

    pairs_per_step: int = 1024
    """Aligned pairs in one step's batch."""

    normalization_pairs: int = 16_384
    """Pairs from which the sources' means and scales are estimated."""

    outlier_multiple: float = 2.0
    """Pairs are left out as in training: those whose norm exceeds this multiple of the median."""

    seed: int = 0
    """Seed of random maps."""

    def __post_init__(self):
        if len(self.sources) != 2 or len(set(self.sources)) != 2 or min(self.sources) < 0:
            raise ValueError(f"Name two different sources to stitch, got {list(self.sources)}.")
        self.sources = (self.sources[0], self.sources[1])  # a list where it comes from JSON
        if self.init not in ("closed_form", "random"):
            raise ValueError(f'init must be "closed_form" or "random", got {self.init!r}.')
        for name in ("ridge", "learning_rate", "pairs_per_step", "normalization_pairs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("inversion_weight", "steps", "outlier_multiple"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True)
class StitchText:
    """Which text a stitching is fitted to and judged by."""

    dataset: Sequence[str] = ()
    """Datasets. Without any, what the run held out and what lies behind its `max_examples`."""

    split: str = "train"
    text_column: str | None = None
    """Column of the datasets; None is the run's."""

    data_args: str = ""
    """Arguments of the first dataset, as in training."""

    pairs: int = 131_072
    """Pairs to fit to, at most."""

    held_out_pairs: int = 8192
    """Pairs of whole texts to judge by."""

    def __post_init__(self):
        if self.pairs < 1 or self.held_out_pairs < 1:
            raise ValueError("--pairs and --held_out_pairs must be positive.")

    def load(self, run: RunConfig) -> Dataset | None:
        """The datasets that are named, read as a run reads its own."""
        if not self.dataset:
            return None
        from ..text.texts import load_texts

        return load_texts(
            self.dataset[0],
            split=self.split,
            data_args=self.data_args,
            text_column=self.text_column or run.text_column,
            extra_datasets=self.dataset[1:],
            shuffle_seed=run.shuffle_seed,
        )
