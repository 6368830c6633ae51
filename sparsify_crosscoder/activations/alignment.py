"""Pairs of tokens at which every source has read the same text (section B.1.6).

Every tokenizer reads the text on its own. A token ends where it does in the text, counted in bytes
of content, and a pair is a position at which every source ends a token. That takes one pass over
each source's tokens and decodes nothing: it is what Algorithm 1 arrives at wherever that succeeds,
and reaches the end of every text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from .chat import plain_text, render_chat
from .tokenization import (
    DEFAULT_RULE,
    NonContent,
    Reason,
    SourceTokenizer,
    TextBatch,
    TokenEnds,
    source_tokenizers,
)

__all__ = [
    "AlignedTokens",
    "NonContent",
    "Reason",
    "align_batch",
    "align_encoded",
    "align_tokens",
    "source_tokenizers",
]

Text = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation as messages with role and content."""

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

    A tokenizer that rewrites text (case, composition, prefix space) is aligned by its character
    offsets, and one without offsets by the bytes that its tokens spell. Takes any number of
    sources; equal tokenizers give the identity on content tokens.

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
    plain = [text if isinstance(text, str) else plain_text(text) for text in texts]
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


class Rendered(NamedTuple):
    """What a source's model is given of a text."""

    string: str
    """The text itself, or the conversation in the model's chat template."""

    spans: Sequence[tuple[int, int, int]] | None = None
    """(start, stop, position in the plain text) of what is content in it; None for all of it."""


def render(text: Text, source: SourceTokenizer) -> Rendered:
    """A text as it is, a conversation in the source's own chat template.

    Raises ValueError without a chat template, jinja2's TemplateError where it refuses.
    """
    if isinstance(text, str):
        return Rendered(text)
    return Rendered(*render_chat(text, source.tokenizer))


class BatchPairs(NamedTuple):
    """The pairs of a batch of T texts, in tokens without the special ones around a text."""

    tokens: list[TokenEnds]
    """Each source's tokens, one text behind the other, every one with its `Reason`."""

    indices: list[np.ndarray]
    """For each source the paired tokens, counted from the beginning of their text [P]."""

    ends: np.ndarray
    """Behind which character of its plain text each pair ends [P]."""

    bounds: np.ndarray
    """Where each text's pairs begin [T + 1]."""

    refused: dict[int, str]
    """Texts of which nothing could be paired, and why."""


def pair_tokens(
    texts: Sequence[str],
    ids: Sequence[Sequence[Sequence[int]]],
    sources: Sequence[SourceTokenizer],
    rendered: Sequence[Sequence[Rendered]] | None = None,
    rules: Sequence[NonContent] | None = None,
) -> BatchPairs:
    """Pair the tokens of many texts in one pass over each source's tokens.

    `texts` are plain texts, `ids[s]` what `sources[s].encode` made of them, or of `rendered[s]`
    where it is given.
    """
    plain = TextBatch(texts)
    rules = rules or [DEFAULT_RULE] * len(sources)
    keys = [(sources.index(source), rule) for source, rule in zip(sources, rules, strict=True)]
    read = {
        (number, rule): _read(
            plain, rendered[number] if rendered else None, ids[number], sources[number], rule
        )
        for number, rule in dict.fromkeys(keys)
    }
    tokens = [read[key] for key in keys]
    indices = _common(tokens, equal=len({number for number, _ in keys}) == 1)
    bounds = np.searchsorted(indices[0], tokens[0].bounds)
    counts = np.diff(bounds)
    ends = plain.characters(tokens[0].ends[indices[0]])
    return BatchPairs(
        tokens=[_settled(part, index) for part, index in zip(tokens, indices, strict=True)],
        indices=[
            index - np.repeat(part.bounds[:-1], counts)
            for part, index in zip(tokens, indices, strict=True)
        ],
        ends=ends - np.repeat(plain.character_bounds[:-1], counts),
        bounds=bounds,
        refused={number: why for part in tokens for number, why in part.refused.items()},
    )


def _common(tokens: Sequence[TokenEnds], equal: bool) -> list[np.ndarray]:
    """For each source the tokens that end where a token of every source ends."""
    if equal:
        both = [np.isin(part.reasons, (Reason.PAIRED, Reason.INSIDE_CHARACTER)) for part in tokens]
        return [np.flatnonzero(np.logical_and.reduce(both))] * len(tokens)
    candidates = [np.flatnonzero(part.reasons == Reason.PAIRED) for part in tokens]
    ends = [part.ends[index] for part, index in zip(tokens, candidates, strict=True)]
    sources_at = np.zeros(max(int(end[-1]) if len(end) else 0 for end in ends) + 1, dtype=np.uint8)
    for end in ends:
        sources_at[end] += 1
    return [
        index[sources_at[end] == len(tokens)] for index, end in zip(candidates, ends, strict=True)
    ]


def _settled(tokens: TokenEnds, paired: np.ndarray) -> TokenEnds:
    """The tokens with the final reason of those that could have been paired."""
    reasons = tokens.reasons.copy()
    reasons[reasons == Reason.PAIRED] = Reason.INSIDE_WINDOW
    reasons[paired] = Reason.PAIRED
    return tokens._replace(reasons=reasons)


def _read(
    plain: TextBatch,
    parts: Sequence[Rendered] | None,
    ids: Sequence[Sequence[int]],
    source: SourceTokenizer,
    rule: NonContent,
) -> TokenEnds:
    """The source's tokens, with ends as positions in the plain texts."""
    chats = _are_chats(parts, len(ids))
    if parts is None or not chats.any():
        tokens = source.read(plain, ids, rule)
    else:
        batch = TextBatch([part.string for part in parts])
        tokens = _in_plain_text(source.read(batch, ids, rule), batch, plain, parts)
    if rule.first:
        begins = (np.diff(tokens.bounds) > 0) & (chats | (not source.prefix))
        first = tokens.bounds[:-1][begins]
        tokens.reasons[first[tokens.reasons[first] != Reason.SPECIAL]] = Reason.FIRST
    return tokens


def _are_chats(parts: Sequence[Rendered] | None, count: int) -> np.ndarray:
    if parts is None:
        return np.zeros(count, dtype=bool)
    return np.array([part.spans is not None for part in parts], dtype=bool)


def _in_plain_text(
    tokens: TokenEnds, batch: TextBatch, plain: TextBatch, parts: Sequence[Rendered]
) -> TokenEnds:
    """Ends in rendered texts as ends in the plain ones; what lies outside the spans is template."""
    starts, stops, positions = [], [], []
    for number, part in enumerate(parts):
        spans = [(0, len(part.string), 0)] if part.spans is None else part.spans
        start, stop, position = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        starts.append(batch.positions(number, start))
        stops.append(batch.positions(number, stop))
        positions.append(plain.positions(number, position))
    start, stop, position = map(np.concatenate, (starts, stops, positions))
    span = np.searchsorted(start, tokens.ends) - 1
    inside = (span >= 0) & (tokens.ends <= np.append(stop, 0)[span])
    shift = np.append(position - start, 0)[span]
    outside = ~inside & np.isin(tokens.reasons, (Reason.PAIRED, Reason.INSIDE_CHARACTER))
    tokens.reasons[outside] = Reason.TEMPLATE
    return tokens._replace(ends=tokens.ends + np.where(inside, shift, 0))


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
        _Frame(source, limit, tokens, _are_chats(parts, len(tokens.bounds) - 1), padding)
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
