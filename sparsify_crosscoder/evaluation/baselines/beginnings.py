"""The beginnings of texts, of which two models read so much as there is time for.

W windows, T texts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from ...text.window_numbers import window_numbers

LEAST_PAIRS = 32
"""Of a text: where fewer fit, fewer texts are read."""

_OF_PAIRS = ("starts", "ends", "roles", "writers")


class Beginnings(NamedTuple):
    """Windows, and what of them is left out."""

    windows: Dataset
    left_out: list[str]
    """In words; empty where all is read."""


def beginnings(windows: Dataset, budget: int) -> Beginnings:
    """The first pairs of each text, as many as make at most `budget` pairs together.

    Where that were fewer than `LEAST_PAIRS` of a text, so many are read of evenly chosen texts, at
    least one. The windows are those of `prepare_windows`.
    """
    text_ids, counts = (window_numbers(windows, name) for name in ("text_id", "num_pairs"))
    numbers, of = np.unique(text_ids, return_inverse=True)
    lengths = np.bincount(of, counts).astype(np.int64)
    if lengths.sum() <= budget:
        return Beginnings(windows, [])
    most, read = pairs_of_each(lengths, budget), np.arange(len(numbers))
    if most < LEAST_PAIRS:
        most = LEAST_PAIRS
        kept = max(budget // LEAST_PAIRS, 1)
        if kept < len(numbers):
            read = np.linspace(0, len(numbers) - 1, kept).round().astype(np.int64)
    before = np.cumsum(counts) - counts  # in the order of windows: texts come one after the other
    first = before[np.searchsorted(of, np.arange(len(numbers)))]
    kept_pairs = np.clip(most - (before - first[of]), 0, counts)
    kept_pairs[~np.isin(of, read)] = 0
    some = f"{len(read):,} of " if len(read) < len(numbers) else ""
    whose = f"of each of {some}{len(numbers):,} texts (--most_pairs {budget:,}; 0 reads all)"
    why = f"All but the first {most:,} pairs {whose}."
    return Beginnings(_cut(windows, kept_pairs), [why])


def pairs_of_each(lengths: np.ndarray, budget: int) -> int:
    """The largest n such that the first n of each of `lengths` `[T]` are at most `budget`."""
    ascending = np.sort(lengths)
    shorter = np.append(0, np.cumsum(ascending))[:-1]  # those that are read whole
    longer = np.arange(len(lengths), 0, -1)
    fits = shorter + longer * ascending <= budget
    place = int(fits.sum())
    return int((budget - shorter[place]) // longer[place]) if place < len(lengths) else budget


def _cut(windows: Dataset, kept: np.ndarray) -> Dataset:
    """Windows with their first pairs only, as many as `kept` `[W]`; without those that keep none.

    Tokens behind the last pair that is kept are left out.
    """
    rows = np.flatnonzero(kept)
    columns: dict[str, Any] = windows.select(rows).with_format(None)[:]
    sources = sum(name.startswith("pairs_") for name in columns)
    cut = [*zip(kept[rows].tolist(), columns["num_pairs"], strict=True)]
    for s in range(sources):
        columns[f"input_ids_{s}"] = [
            ids[: pairs[count - 1] + 1] if count < every else ids
            for ids, pairs, (count, every) in zip(
                columns[f"input_ids_{s}"], columns[f"pairs_{s}"], cut, strict=True
            )
        ]
    for name in (*(f"pairs_{s}" for s in range(sources)), *_OF_PAIRS):
        if name in columns:
            columns[name] = [
                some[:count] for some, (count, _) in zip(columns[name], cut, strict=True)
            ]
    columns["num_pairs"] = kept[rows].tolist()
    return Dataset.from_dict(columns, features=windows.features)
