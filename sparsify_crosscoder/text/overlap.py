"""Texts that were seen before, in whole or in part, whatever their case and white space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from .chat import plain_text
from .texts import rows_of

SPAN = 128  # characters that are not white space: some 30 tokens of English
_TEXTS_AT_ONCE = 1_000
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64


class Overlap(NamedTuple):
    """How much of each of T texts is in other texts."""

    shared: np.ndarray
    """[T] Share of the text's spans of `SPAN` characters that occur there."""

    @property
    def any(self) -> np.ndarray:
        """[T] Whether the text shares a span with them."""
        return self.shared > 0

    @property
    def whole(self) -> np.ndarray:
        """[T] Whether all its spans occur there."""
        return self.shared == 1


def overlap(texts: Dataset, seen: Dataset) -> Overlap:
    """Compare every text of one dataset with all of another, both as `load_texts` gives them.

    Case and white space do not count, and of conversations only what was said does. Texts shorter
    than a span are compared whole. Takes memory for `texts`, and reads `seen` in parts.
    """
    hashes, owners = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
    for number, text in enumerate(contents(texts)):
        spans = _spans(text)
        hashes.append(spans)
        owners.append(np.full(len(spans), number))
    all_hashes, owner = np.concatenate(hashes), np.concatenate(owners)
    distinct, place = np.unique(all_hashes, return_inverse=True)
    found = np.zeros(len(distinct), dtype=bool)
    for spans in _joined(_spans(text) for text in contents(seen)):
        found |= np.isin(distinct, spans)
    counts = np.bincount(owner, minlength=len(texts))
    hits = np.bincount(owner, weights=found[place], minlength=len(texts))
    return Overlap(hits / np.maximum(counts, 1))


def contents(texts: Dataset) -> Iterator[str]:
    """The texts without case and white space."""
    for batch in texts.with_format(None).iter(_TEXTS_AT_ONCE):
        rows: Any = batch
        for row in rows_of(rows):
            yield "".join(plain_text(row).casefold().split())


def _spans(text: str) -> np.ndarray:
    """A hash of every span of a text, the same for the same characters wherever they stand.

    Polynomials modulo 2**64 from differences of one cumulative sum. A text shorter than a span
    has one hash, an empty one none.
    """
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    if not len(characters):
        return np.empty(0, dtype=np.uint64)
    # Characters are scattered over all bits first: those of a script lie close together.
    values = (characters.astype(np.uint64) + np.uint64(1)) * _BASE
    values ^= values >> np.uint64(29)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    length = min(SPAN, len(values))
    powers = np.cumprod(np.full(len(values), _BASE))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values * powers)])
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    back = np.cumprod(np.full(len(values) - length + 1, inverse))
    result = (sums[length:] - sums[: len(sums) - length]) * back
    return result ^ (result >> np.uint64(32))


def _joined(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts in few large arrays."""
    waiting: list[np.ndarray] = []
    for part in parts:
        waiting.append(part)
        if len(waiting) == _TEXTS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)
