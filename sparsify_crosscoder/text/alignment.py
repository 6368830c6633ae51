"""Pairs of tokens at which every source has read the same text (section B.1.6).

Every tokenizer reads the text on its own. A token ends where it does in the text, counted in bytes
of content, and a pair is a position at which every source ends a token. That takes one pass over
each source's tokens and decodes nothing: it is what Algorithm 1 arrives at wherever that succeeds,
and reaches the end of every text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .chat import Text, plain_text
from .pairing import BatchPairs, Rendered, are_chats, pair_tokens, render
from .token_ends import DEFAULT_RULE, NonContent, Reason, TokenEnds
from .tokenization import SourceTokenizer, source_tokenizers

__all__ = [
    "AlignedTokens",
    "NonContent",
    "Reason",
    "align_batch",
    "align_encoded",
    "align_tokens",
    "source_tokenizers",
]

Rules = NonContent | Sequence[NonContent]
"""One rule for all sources, or one for each."""


@dataclass(frozen=True)
class AlignedTokens:
    """Aligned token positions of one text."""

    indices: list[list[int]]
    """One list of increasing token indices per source, equal lengths."""

    ends: list[int]
    """The character of the text (of `plain_text` for chat) behind which each pair ends.

    It repeats where tokens of all sources end at the same byte inside one character.
    """

    input_ids: list[list[int]]
    """For each source the tokens that its model is to read, which `indices` count."""

    reasons: list[np.ndarray]
    """For each source the `Reason` of every token, uint8, in the order of `input_ids`."""

    @cached_property
    def left_out(self) -> list[dict[Reason, list[int]]]:
        """For each source the token indices that are in no pair, by reason."""
        return [
            {
                reason: np.flatnonzero(reasons == reason).tolist()
                for reason in Reason
                if reason != Reason.PAIRED and (reasons == reason).any()
            }
            for reasons in self.reasons
        ]


def align_tokens(
    text: Text,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    non_content: Rules = DEFAULT_RULE,
    max_length: int | Sequence[int] | None = None,
) -> AlignedTokens:
    """Pair the tokens at which all tokenizers have read exactly the same content of `text`.

    Indices count from the first token of `tokenizer(text)`, special tokens included, or of
    `tokenizer.apply_chat_template(text)` for a conversation, of which only the messages' contents
    align. A pair is the last token of every smallest window of text on which all sources end
    together. What never pairs is told by `non_content`, one rule for all sources or one for each.
    `max_length` (one number, or one per source) truncates as `tokenizer(text, truncation=True)`
    does.

    Where a tokenizer has rewritten the text (case, composition, unknown characters) its character
    offsets are followed instead of what its tokens spell. Takes any number of sources; equal
    tokenizers give the identity on content tokens.

    Raises ValueError for fewer than two tokenizers, for a tokenizer without offsets whose tokens
    do not spell the text, and for a conversation without a chat template.
    """
    return align_batch([text], tokenizers, non_content=non_content, max_length=max_length)[0]


def align_batch(
    texts: Sequence[Text],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    non_content: Rules = DEFAULT_RULE,
    max_length: int | Sequence[int] | None = None,
    padding: bool = False,
) -> list[AlignedTokens]:
    """Align many texts at once, which is faster than one by one.

    As `align_tokens`; `padding` pads each source's `input_ids` to the longest of the batch on the
    tokenizer's `padding_side`, and `indices` count the padding.

    Raises ValueError as `align_tokens`, naming the text, and for padding without a padding token.
    """
    sources = source_tokenizers(tokenizers)
    rendered = [[render(text, source) for text in texts] for source in sources]
    ids = [
        source.encode([part.string for part in parts])
        for source, parts in zip(sources, rendered, strict=True)
    ]
    plain = [plain_text(text) for text in texts]
    rules = _per_source(non_content, len(sources), "non_content")
    pairs = pair_tokens(plain, ids, sources, rendered, rules)
    return _as_models_read(pairs, ids, sources, rendered, max_length, padding)


def align_encoded(
    texts: Sequence[str],
    ids: Sequence[Sequence[list[int]]],
    sources: Sequence[SourceTokenizer],
) -> list[AlignedTokens]:
    """`align_batch` for texts that are tokenised: `ids[s]` is `sources[s].encode(texts)`."""
    return _as_models_read(pair_tokens(texts, ids, sources), ids, sources)


def _as_models_read(
    pairs: BatchPairs,
    ids: Sequence[Sequence[list[int]]],
    sources: Sequence[SourceTokenizer],
    rendered: Sequence[Sequence[Rendered]] | None = None,
    max_length: int | Sequence[int] | None = None,
    padding: bool = False,
) -> list[AlignedTokens]:
    """The pairs in what each tokenizer's own call returns, with its special tokens around.

    Raises ValueError for texts of which nothing could be paired.
    """
    for number, reason in pairs.refused.items():
        raise ValueError(f"Text {number} cannot be aligned: {reason}")
    limits = _per_source(max_length, len(sources), "max_length")
    frames = [
        _Frame(source, limit, tokens, are_chats(parts, len(tokens.bounds) - 1), padding)
        for source, limit, tokens, parts in zip(
            sources, limits, pairs.tokens, rendered or [None] * len(sources), strict=True
        )
    ]
    text = np.repeat(np.arange(len(pairs.bounds) - 1), np.diff(pairs.bounds))
    kept = np.logical_and.reduce(
        [
            (index >= frame.start[text]) & (index < frame.stop[text])
            for index, frame in zip(pairs.indices, frames, strict=True)
        ]
    )
    bounds = np.append(0, np.cumsum(kept))[pairs.bounds].tolist()
    ends = pairs.ends[kept].tolist()
    indices, input_ids, reasons = [], [], []
    for source, (index, tokens, frame) in enumerate(
        zip(pairs.indices, pairs.tokens, frames, strict=True)
    ):
        indices.append((index + frame.shift[text])[kept].tolist())
        if not kept.all():
            tokens.reasons[(index + tokens.bounds[text])[~kept]] = Reason.UNREAD
        input_ids.append(frame.input_ids(ids[source]))
        reasons.append(frame.reasons(tokens))
    return [
        AlignedTokens(
            indices=[index[first:last] for index in indices],
            ends=ends[first:last],
            input_ids=[side[number] for side in input_ids],
            reasons=[side[number] for side in reasons],
        )
        for number, (first, last) in enumerate(pairwise(bounds))
    ]


class _Frame:
    """What one source's model reads around its share of each text of a batch, by arrays [T]."""

    def __init__(
        self,
        source: SourceTokenizer,
        limit: int | None,
        tokens: TokenEnds,
        chats: np.ndarray,
        padding: bool,
    ):
        tokenizer = source.tokenizer
        self._source, self._chats = source, chats
        prefix = np.where(chats, 0, len(source.prefix))
        around = np.where(chats, 0, len(source.prefix) + len(source.suffix))
        lengths = np.diff(tokens.bounds)
        room = lengths if limit is None else np.minimum(lengths, limit - around)
        if (room < 0).any():
            raise ValueError(
                f"`max_length` {limit} has no room for the special tokens of {source.name}."
            )
        self.start = (lengths - room) * (tokenizer.truncation_side == "left")
        self.stop = self.start + room
        width = room + around
        self._missing = width.max(initial=0) - width if padding else np.zeros_like(width)
        self._pad: Any = tokenizer.pad_token_id
        if self._missing.any() and self._pad is None:
            raise ValueError(
                f"The tokenizer {source.name} has no padding token. Give it one, for example "
                "tokenizer.pad_token = tokenizer.eos_token."
            )
        self._left = self._missing * (tokenizer.padding_side == "left")
        self.shift = self._left + prefix - self.start
        """What an index in the text lacks to be one in the model's input."""

    def input_ids(self, ids: Sequence[list[int]]) -> list[list[int]]:
        """The ids of every text with the special tokens and the padding around them."""
        padding = [self._pad] * self._missing.max(initial=0)
        return [
            [*padding[:left], *prefix, *tokens[start:stop], *suffix, *padding[:right]]
            for tokens, (start, stop, prefix, suffix, left, right) in zip(
                ids, self._around(self._source.prefix, self._source.suffix), strict=True
            )
        ]

    def reasons(self, tokens: TokenEnds) -> list[np.ndarray]:
        """The reasons of every text's tokens, likewise."""
        special = (
            np.full(len(ids), Reason.SPECIAL, dtype=np.uint8)
            for ids in (self._source.prefix, self._source.suffix)
        )
        padding = np.full(self._missing.max(initial=0), Reason.PADDING, dtype=np.uint8)
        return [
            np.concatenate(
                [
                    padding[:left],
                    prefix,
                    tokens.reasons[first + start : first + stop],
                    suffix,
                    padding[:right],
                ]
            )
            for first, (start, stop, prefix, suffix, left, right) in zip(
                tokens.bounds.tolist(), self._around(*special), strict=False
            )
        ]

    def _around(self, prefix: Any, suffix: Any) -> Iterator[tuple[int, int, Any, Any, int, int]]:
        """Per text: where it starts and stops, what is before and behind, padding on both sides."""
        numbers = (self.start, self.stop, self._chats, self._left, self._missing - self._left)
        for start, stop, chat, left, right in zip(*(n.tolist() for n in numbers), strict=True):
            if chat:
                yield start, stop, prefix[:0], suffix[:0], left, right
            else:
                yield start, stop, prefix, suffix, left, right


def _per_source(value: Any, count: int, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"`{name}` has {len(value)} entries for {count} sources.")
    return list(value)
