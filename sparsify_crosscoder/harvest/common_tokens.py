"""What the next tokens of two vocabularies say in common: beginnings of text that both know.

A token that both have stands for itself, another for what the other model says first of it: the
first of the tokens that the other tokenizer makes of it. Where one vocabulary only has merged
tokens more, a token of the smaller has the probability of all those of the larger that it begins.

n positions, V tokens of a vocabulary, K beginnings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..text.tokenization import SourceTokenizer, special_ids
from .heads import share_vocabulary
from .source import Source

_TINY = 1e-30


@dataclass(frozen=True)
class CommonTokens:
    """The beginnings that both vocabularies know, and which one each token stands for."""

    said: list[str]
    """What each says, `[K]`; of what is none, such as special tokens, "", which is the last."""

    beginnings: list[Tensor] | None
    """The beginning that each token stands for, `[V]` by source; None of one vocabulary, in which
    every token is its own."""

    def __len__(self) -> int:
        return len(self.said)

    def log_probabilities(self, source: int, tokens: Tensor) -> Tensor:
        """Of the beginnings, `[n, K]`, from those of a source's tokens `[n, V]`."""
        if self.beginnings is None:
            return tokens
        of = self.beginnings[source].to(tokens.device)
        summed = torch.zeros(len(tokens), len(self), device=tokens.device, dtype=tokens.dtype)
        summed.scatter_add_(1, of.expand(len(tokens), -1), tokens.exp())
        return summed.clamp_min_(_TINY).log_()


def common_tokens(first: Source, second: Source) -> CommonTokens:
    """What two sources with heads say in common.

    Raises ValueError for vocabularies of which it is not known what their tokens spell.
    """
    sources = (first, second)
    heads = [source.head for source in sources if source.head is not None]
    assert len(heads) == len(sources)
    sizes = [head.num_tokens for head in heads]
    if sizes[0] == sizes[1] and share_vocabulary([source.tokenizer for source in sources]):
        return CommonTokens(_texts(first.tokenizer, sizes[0]), None)
    tokenizers = [SourceTokenizer(source.tokenizer) for source in sources]
    spelled = [_spelled(one, size) for one, size in zip(tokenizers, sizes, strict=True)]
    known = sorted({*spelled[0]} & {*spelled[1]} - {b""})
    places = {word: place for place, word in enumerate(known)}
    return CommonTokens(
        [*(word.decode(errors="replace") for word in known), ""],
        [
            torch.tensor(_beginnings(spelled[s], places, tokenizers[1 - s], spelled[1 - s]))
            for s in range(len(sources))
        ],
    )


def _beginnings(
    words: Sequence[bytes],
    places: Mapping[bytes, int],
    other: SourceTokenizer,
    others_words: Sequence[bytes],
) -> list[int]:
    """The number of what each word begins with, by what another tokenizer, whose own words these
    are, makes of it; or of the longest beginning that is known where that is none, or the number
    behind all."""
    texts: dict[bytes, str] = {}
    for word in words:
        if word and word not in places:
            with suppress(UnicodeDecodeError):
                texts[word] = word.decode()
    said: dict[bytes, bytes] = {}
    for word, ids in zip(texts, other.encode([*texts.values()]), strict=True):
        said[word] = others_words[ids[0]] if ids else b""
    found = []
    for word in words:
        begin = said.get(word, word)
        if begin not in places or not word.startswith(begin):
            stops = range(len(word), 0, -1)
            begin = next((word[:stop] for stop in stops if word[:stop] in places), b"")
        found.append(places.get(begin, len(places)))
    return found


def _spelled(tokenizer: SourceTokenizer, size: int) -> list[bytes]:
    """The bytes of every token; none of special ones and of those that no tokenizer makes."""
    if not tokenizer.spelling.known:
        raise ValueError(
            f"It is not known what the tokens of {tokenizer.name} spell, so that its next tokens "
            "cannot be compared with another vocabulary's."
        )
    count = min(size, len(tokenizer.tokenizer))
    said, lengths = tokenizer.spelling.read(np.arange(count))
    words = [said[stop - n : stop] for stop, n in zip(np.cumsum(lengths), lengths, strict=True)]
    for special in special_ids(tokenizer.tokenizer):
        if special < count:
            words[special] = b""
    return words + [b""] * (size - count)


def _texts(tokenizer: Any, size: int) -> list[str]:
    """Every token of a vocabulary as text."""
    every = [[token] for token in range(min(size, len(tokenizer)))]
    texts = list(tokenizer.batch_decode(every, clean_up_tokenization_spaces=False))
    return texts + [""] * (size - len(texts))
