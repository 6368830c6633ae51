"""Which texts two models continue differently, by the columns of a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..runs.pairs import run_store
from ..runs.run import Run
from ..store.store import ActivationStore
from ..text.window_numbers import window_numbers

_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True)
class DivergentPair:
    """A place where the models expect different next tokens."""

    pair: int
    """Number of the pair in the store; `ActivationStore.pair` says what is there."""

    characters: tuple[int, int]
    """The characters of the text that the pair stands for; what differs comes behind them."""

    value: float
    """The divergence there, in nats."""


@dataclass(frozen=True)
class TextDivergence:
    """How far apart two models are over one text."""

    text_id: int
    """As the store's windows number it."""

    pairs: int
    """Pairs that the text has in the store."""

    mean: float
    """Mean divergence of its pairs, in nats."""

    largest: list[DivergentPair]
    """The places where it is largest, the first of all first."""

    @property
    def max(self) -> float:
        """The largest divergence of a pair, in nats."""
        return self.largest[0].value


def divergence_of_likelihoods(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How far two models differ on a text's tokens, from the log-likelihoods that both give them.

    `|d| - 1 + exp(-|d|)` of their difference d, in nats: at least 0, and for text that one of the
    two wrote an estimate of the KL divergence (after Schulman 2020, "Approximating KL divergence",
    bounded by |d| whoever wrote it). Where a likelihood is not known it is 0.
    """
    apart = (first - second).abs().nan_to_num(0.0)
    return apart - 1 + (-apart).exp()


def text_divergence(
    source: Run | ActivationStore, *, column: str = "kl_1_0", places: int = 5
) -> list[TextDivergence]:
    """Every text of a store, or of a run's, by the mean of a column, the largest first.

    `column` is one of the store's (`harvest.divergence`): `kl_1_0` is KL(B || A) in nats. `places`
    is how many of each text's largest values are shown, at least 1. Raises ValueError for a run
    without a store, and a store without that column.
    """
    store = source if isinstance(source, ActivationStore) else run_store(source.config)
    if store is None:
        raise ValueError(
            "The run has no store, in which the divergence is kept: train it with --cache STORE."
        )
    values = torch.cat(
        [
            store.columns(numbers, [column])[column]
            for numbers in torch.arange(len(store)).split(_PAIRS_AT_ONCE)
        ]
    ).numpy()
    counts = window_numbers(store.windows, "num_pairs")
    text_of = np.repeat(window_numbers(store.windows, "text_id"), counts)
    texts, text, pairs = np.unique(text_of, return_inverse=True, return_counts=True)
    means = np.bincount(text, values.astype(np.float64)) / pairs
    by_text = np.lexsort((-values, text))  # each text's pairs together, the largest first
    first = np.cumsum(pairs) - pairs
    shown = [by_text[i : i + min(places, n)] for i, n in zip(first, pairs, strict=True)]
    characters = _characters(store, np.concatenate(shown))
    return [
        TextDivergence(
            int(texts[i]),
            int(pairs[i]),
            float(means[i]),
            [DivergentPair(n, characters[n], float(values[n])) for n in shown[i].tolist()],
        )
        for i in np.argsort(-means, kind="stable")
    ]


def _characters(store: ActivationStore, numbers: np.ndarray) -> dict[int, tuple[int, int]]:
    """The characters that pairs stand for, by their numbers."""
    windows, places = store.provenance(torch.from_numpy(numbers))
    read, row = np.unique(windows.numpy(), return_inverse=True)
    spans = store.windows.select_columns(["starts", "ends"])[read]
    where = zip(numbers.tolist(), row.tolist(), places.tolist(), strict=True)
    return {n: (spans["starts"][w][p], spans["ends"][w][p]) for n, w, p in where}
