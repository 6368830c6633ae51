"""Algorithm 1 of section B.1.6 as printed: the reference that tests and benchmarks compare with."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from .spelling import Spelling
from .tokenization import special_ids


class ReferenceAlignment(NamedTuple):
    """What Algorithm 1 made of one text."""

    indices: list[list[int]]
    """For each of the two sources the paired tokens, special tokens counted."""

    finished: bool
    """Whether it came to the end of the text; otherwise it gave up behind the last pair."""


def align_reference(
    text: str,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    ids: Sequence[Sequence[int]] | None = None,
    byte_exact: bool = False,
) -> ReferenceAlignment:
    """Align one text by decoding growing windows until their texts match (Algorithm 1).

    Window decoding is quadratic, and characters split over several tokens decode to U+FFFD, which
    can make a wrong pair or end it early; with `byte_exact` windows are compared by the bytes that
    their tokens spell instead. `align_tokens` has neither fault. `ids` are the tokens of
    `tokenizer(text)` where they are known. Windows are compared without the white space around
    them; only the indices that lines 8 to 13 and 29 to 32 let run past the end are bounded here.

    Raises ValueError unless there are two tokenizers.
    """
    if len(tokenizers) != 2:
        raise ValueError(f"Algorithm 1 aligns two tokenizers, got {len(tokenizers)}.")
    if ids is None:
        ids = [tokenizer(text, verbose=False)["input_ids"] for tokenizer in tokenizers]
    pairs, finished = algorithm1(ids[0], ids[1], tokenizers[0], tokenizers[1], byte_exact)
    return ReferenceAlignment([list(side) for side in zip(*pairs)] or [[], []], finished)  # noqa: B905


def algorithm1(
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    tokenizer_a: PreTrainedTokenizerBase,
    tokenizer_b: PreTrainedTokenizerBase,
    byte_exact: bool = False,
) -> tuple[list[tuple[int, int]], bool]:
    """The pairs (index in a, index in b) of two token sequences, and whether it came to the end."""
    a, b = _Side(ids_a, tokenizer_a, byte_exact), _Side(ids_b, tokenizer_b, byte_exact)
    pairs: list[tuple[int, int]] = []
    pos_a, pos_b = a.next_content(0), b.next_content(0)
    while pos_a < len(ids_a) and pos_b < len(ids_b):
        end_a, end_b = pos_a + 1, pos_b + 1
        text_a, text_b = a.text(pos_a, end_a), b.text(pos_b, end_b)
        while text_a != text_b:
            if len(text_a) < len(text_b) and end_a < len(ids_a):
                end_a += 1
                text_a = a.text(pos_a, end_a)
            elif end_b < len(ids_b):
                end_b += 1
                text_b = b.text(pos_b, end_b)
            else:
                return pairs, False
        pairs.append((end_a - 1, end_b - 1))
        pos_a, pos_b = a.next_content(end_a), b.next_content(end_b)
    return pairs, pos_a >= len(ids_a) and pos_b >= len(ids_b)


class _Side:
    def __init__(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, byte_exact: bool):
        self.ids = list(ids)
        self.special = _special(tokenizer, len(tokenizer))
        self.normalised = _bytes_of(tokenizer) if byte_exact else _text_of(tokenizer)

    def text(self, start: int, stop: int) -> str | bytes:
        return self.normalised(self.ids[start:stop])

    def next_content(self, index: int) -> int:
        while index < len(self.ids) and (
            self.ids[index] in self.special or not self.text(index, index + 1)
        ):
            index += 1
        return index


@lru_cache(maxsize=16)
def _special(tokenizer: PreTrainedTokenizerBase, _size: int) -> frozenset[int]:
    return frozenset(special_ids(tokenizer).tolist())


def _text_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    def decode(ids: list[int]) -> str:
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert isinstance(decoded, str)
        return decoded.strip()

    return decode


def _bytes_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], bytes]:
    spelling = Spelling(tokenizer)

    def spell(ids: list[int]) -> bytes:
        spelled = spelling.join(ids).decode("utf-8", "surrogateescape")
        return spelled.strip().encode("utf-8", "surrogateescape")

    return spell
