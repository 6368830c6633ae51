"""Texts by how far two models are apart on them, by every method that says so of single pairs.

N pairs, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..text_divergence import divergence_of_likelihoods
from .found import Found
from .reading import Reading
from .token_gains import SURE

LISTED = 20
"""Texts of each method that are listed."""

_BEFORE, _BEHIND = 90, 60


class PairValues(NamedTuple):
    """What a method says of pairs; a text's score is the ratio of the sums."""

    method: str
    pairs: Tensor
    """Numbers of the pairs that it says something of, `[n]`."""

    values: Tensor
    """`[n]`."""

    weights: Tensor
    """`[n]`: 1, or bytes."""


@dataclass(frozen=True)
class TextScores:
    """Texts with a score each, those furthest from 0 first, `[T]` everywhere."""

    method: str
    texts: np.ndarray
    scores: np.ndarray
    errors: np.ndarray
    """Standard error over the text's pairs; NaN of a single one."""

    peaks: np.ndarray
    """The pair of each that says it most."""


def values_of(reading: Reading, texts: Mapping[int, str]) -> Iterator[PairValues]:
    """What is said of the pairs of a reading by its columns."""
    known, every = reading.columns, torch.arange(len(reading))
    if "kl_1_0" in known:
        yield PairValues("kl", every, known["kl_1_0"], torch.ones(len(every)))
    if "loglik_0" in known:
        followed, sizes = bytes_behind(reading, texts)
        there = followed.nonzero()[:, 0]
        first, second = (known[f"loglik_{s}"][there] for s in (0, 1))
        unlike = divergence_of_likelihoods(first, second)
        yield PairValues("likelihood", there, unlike, torch.ones(len(there)))
        yield PairValues("perplexity", there, second - first, sizes[there].float())


def bytes_behind(reading: Reading, texts: Mapping[int, str]) -> tuple[Tensor, Tensor]:
    """Which pairs are followed by the next of the same text, and by how many bytes of it, `[N]`.

    The last of a window is not, nor one behind which a template or somebody else's words come.
    """
    notes = reading.notes
    last = torch.zeros(min(len(reading), 1), dtype=torch.bool)
    same = (notes.window[1:] == notes.window[:-1]) & (notes.role[1:] == notes.role[:-1])
    followed = torch.cat([same & (notes.position[1:] == notes.position[:-1] + 1), last])
    numbers, counts = notes.text_id.unique_consecutive(return_counts=True)
    parts = [
        _bytes_before(texts[number])[ends]
        for number, ends in zip(numbers.tolist(), notes.end.split(counts.tolist()), strict=True)
    ]
    at = torch.cat(parts)
    sizes = torch.where(followed, at.roll(-1) - at, 0)
    return followed, sizes


def _bytes_before(text: str) -> Tensor:
    """The byte at which each character of a text begins, and where the last ends."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return torch.from_numpy(np.append(0, np.cumsum(sizes)))


def text_scores(reading: Reading, said: PairValues) -> TextScores:
    """The texts of what a method says of pairs."""
    text = reading.notes.text_id[said.pairs].numpy()
    values, weights = said.values.double().numpy(), said.weights.double().numpy()
    numbers, of, counts = np.unique(text, return_inverse=True, return_counts=True)
    total, weight = np.bincount(of, values), np.bincount(of, weights)
    scores = total / np.maximum(weight, 1)
    beyond = np.bincount(of, (values - scores[of] * weights) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.sqrt(beyond * counts / (counts - 1)) / np.maximum(weight, 1)
    by_size = np.lexsort((-np.abs(values), of))
    peaks = said.pairs.numpy()[by_size[np.cumsum(counts) - counts]]
    order = np.argsort(-np.abs(scores), kind="stable")
    return TextScores(said.method, *(x[order] for x in (numbers, scores, errors, peaks)))


def listed_texts(
    reading: Reading, found: TextScores, texts: Mapping[int, str], most: int = LISTED
) -> list[Found]:
    """The first texts as entries, each with the passage that says it most."""
    entries = []
    for rank, (number, score, error, peak) in enumerate(
        zip(found.texts[:most], found.scores, found.errors, found.peaks, strict=False), 1
    ):
        if not score:
            break
        size, wide = abs(float(score)), SURE * float(error)
        bounds = (size - wide, size + wide) if np.isfinite(error) else None
        shown = passage(reading, texts, int(peak))
        source = 0 if score < 0 else 1
        entries.append(
            Found(rank, "text", found.method, source, size, bounds, "", shown, [int(number)])
        )
    return entries


def passage(reading: Reading, texts: Mapping[int, str], pair: int) -> str:
    """What is around the end of a pair, on one line; » is where the pair ends."""
    text, end = texts[int(reading.notes.text_id[pair])], int(reading.notes.end[pair])
    before, behind = text[max(end - _BEFORE, 0) : end], text[end : end + _BEHIND]
    return " ".join(f"{before}»{behind}".split())
