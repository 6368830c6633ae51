"""Pairs of tokens at which every source has read the same text (section B.1.6)."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

# No character from U+3001 on is white space, so the table's last entry stands for all of them.
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])
_NO_LIMIT = np.iinfo(np.int64).max


class Alignment(NamedTuple):
    """Aligned token positions of one text."""

    indices: list[list[int]]
    """One list of increasing token indices per source, equal lengths."""

    ends: list[int]
    """The character of the text behind which each pair ends."""


def align_tokens(text: str, tokenizers: Sequence[PreTrainedTokenizerBase]) -> Alignment:
    """Pair the tokens at which all tokenizers have read exactly the same content of `text`.

    Indices count from the first token of `tokenizer(text)`, special tokens included. A pair is the
    last token of every smallest matching window: what Algorithm 1 (section B.1.6) gives wherever
    it succeeds, and no less behind byte-split characters. White space and special tokens are never
    paired, and of the tokens that share one character only the one that completes it is.

    Raises ValueError for fewer than two tokenizers or a tokenizer without character offsets.
    """
    check_tokenizers(tokenizers)
    reach = content_reach(text)
    candidates = []
    for tokenizer in tokenizers:
        encoding = tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        special = np.array(encoding["special_tokens_mask"], dtype=bool)
        special |= np.isin(as_ids(encoding["input_ids"]), special_ids(tokenizer))
        offsets = as_offsets(encoding["offset_mapping"])
        candidates.append(completed(content_ends(offsets, special, reach), offsets))
    indices, ends = align_offsets(candidates)
    return Alignment([index.tolist() for index in indices], ends.tolist())


def align_offsets(content_ends: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Intersect the content ends of all sources.

    `content_ends` holds one integer array [N_s] per source: where each token's content ends, or -1
    for a token that cannot be paired. Of several tokens with one end the last is taken.
    Returns one index array [P] per source and the ends [P], all strictly increasing.
    """
    kept = []
    for ends in content_ends:
        index = np.flatnonzero(ends >= 0)
        index = index[ends[index] < _later_minimum(ends[index])]
        kept.append((index, ends[index]))
    common = reduce(
        lambda left, right: np.intersect1d(left, right, assume_unique=True),
        [ends for _, ends in kept],
    )
    return [index[np.searchsorted(ends, common)] for index, ends in kept], common


def content_reach(text: str) -> np.ndarray:
    """For every n from 0 to len(text): behind which character the content of text[:n] ends."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    space = _IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)]
    reach = np.zeros(len(codes) + 1, dtype=np.int64)
    reach[1:] = np.where(space, 0, np.arange(1, len(codes) + 1))
    return np.maximum.accumulate(reach)


def content_ends(offsets: np.ndarray, special: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Where the content of each token ends, -1 for special, empty and white-space tokens.

    `offsets` [N, 2] are character spans, `special` [N] marks special tokens, `reach` is the
    text's `content_reach`. Returns int64 [N].
    """
    ends = reach[offsets[:, 1]]
    return np.where(special | (ends <= offsets[:, 0]), -1, ends)


def completed(ends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """`ends` with -1 for each token whose last character a later token continues.

    Byte-level tokenizers split one character over several tokens, whose spans repeat or overlap:
    before its last token the character is not read yet.
    """
    starts = np.where(offsets[:, 1] > offsets[:, 0], offsets[:, 0], _NO_LIMIT)
    return np.where(ends <= _later_minimum(starts), ends, -1)


def check_tokenizers(tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Raise ValueError unless there are two or more tokenizers and all give character offsets."""
    if len(tokenizers) < 2:
        raise ValueError(
            f"Alignment needs a tokenizer for each of at least two sources, got {len(tokenizers)}."
        )
    for source, tokenizer in enumerate(tokenizers):
        if not tokenizer.is_fast:
            raise ValueError(
                f"The tokenizer of source {source} ({tokenizer.name_or_path or 'unnamed'}, "
                f"{type(tokenizer).__name__}) gives no character offsets, which alignment needs. "
                "Load its fast version (AutoTokenizer.from_pretrained with a tokenizer.json), or "
                "convert it once with transformers.convert_slow_tokenizer and save that."
            )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids that stand for no text: all special tokens but a separate unknown token."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = added | set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token
    if unknown not in (None, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token):
        ids.discard(tokenizer.convert_tokens_to_ids(str(unknown)))
    return as_ids(sorted(ids))


def as_ids(ids: Sequence[int]) -> np.ndarray:
    """Token ids as int32 [N]."""
    return np.array(ids, dtype=np.int32)


def as_offsets(offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Character spans as int64 [N, 2], also when there are none."""
    return np.array(offsets, dtype=np.int64).reshape(-1, 2)


def _later_minimum(values: np.ndarray) -> np.ndarray:
    """For every value the smallest of those behind it; no limit for the last."""
    later = np.minimum.accumulate(values[:0:-1])[::-1]
    return np.append(later, _NO_LIMIT)[: len(values)]
