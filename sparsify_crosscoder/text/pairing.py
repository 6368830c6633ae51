"""Which tokens of all sources end at the same place of the same text.

Everything is counted in bytes of content of the plain text, over a whole batch at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .chat import Text, render_chat
from .text_batch import TextBatch
from .token_ends import DEFAULT_RULE, NonContent, Reason, TokenEnds
from .tokenization import SourceTokenizer

_EQUAL = (Reason.PAIRED, Reason.INSIDE_CHARACTER)
"""What is in a pair where the tokenizers are equal."""
_WRITTEN = (*_EQUAL, Reason.SPECIAL, Reason.WHITE_SPACE)
"""What else a chat template writes, where its tokens are paired too."""


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

    template: np.ndarray
    """Which pairs are a chat template's tokens, bool [P]."""


def pair_tokens(
    texts: Sequence[str],
    ids: Sequence[Sequence[Sequence[int]]],
    sources: Sequence[SourceTokenizer],
    rendered: Sequence[Sequence[Rendered]] | None = None,
    rules: Sequence[NonContent] | None = None,
    template_tokens: bool = False,
) -> BatchPairs:
    """Pair the tokens of many texts in one pass over each source's tokens.

    `texts` are plain texts, `ids[s]` what `sources[s].encode` made of them, or of `rendered[s]`
    where it is given. With `template_tokens`, which takes sources that are all equal, what the chat
    template writes is paired too; such a pair ends where what was said before it does.
    """
    plain = TextBatch(texts)
    rules = rules or [DEFAULT_RULE] * len(sources)
    keys = [(sources.index(source), rule) for source, rule in zip(sources, rules, strict=True)]
    read = {
        (number, rule): _read(
            plain,
            rendered[number] if rendered else None,
            ids[number],
            sources[number],
            rule,
            _WRITTEN if template_tokens else _EQUAL,
        )
        for number, rule in dict.fromkeys(keys)
    }
    tokens = [read[key] for key in keys]
    equal = len({number for number, _ in keys}) == 1
    assert equal or not template_tokens
    paired = (*_EQUAL, *([Reason.TEMPLATE] if template_tokens else []))
    indices = _common(tokens, paired if equal else None)
    bounds = np.searchsorted(indices[0], tokens[0].bounds)
    counts = np.diff(bounds)
    ends = plain.characters(tokens[0].ends[indices[0]])
    ends = np.maximum(ends - np.repeat(plain.character_bounds[:-1], counts), 0)
    return BatchPairs(
        tokens=[_settled(part, index) for part, index in zip(tokens, indices, strict=True)],
        indices=[
            index - np.repeat(part.bounds[:-1], counts)
            for part, index in zip(tokens, indices, strict=True)
        ],
        ends=ends,
        bounds=bounds,
        refused={number: why for part in tokens for number, why in part.refused.items()},
        template=tokens[0].reasons[indices[0]] == Reason.TEMPLATE,
    )


def _common(tokens: Sequence[TokenEnds], equal: Sequence[Reason] | None) -> list[np.ndarray]:
    """For each source the tokens that end where a token of every source ends.

    Of sources that are all `equal`, the tokens with these reasons.
    """
    if equal is not None:
        both = [np.isin(part.reasons, equal) for part in tokens]
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
    written: Sequence[Reason],
) -> TokenEnds:
    """The source's tokens, with ends as positions in the plain texts.

    Those that a chat template has written are `Reason.TEMPLATE` where they were one of `written`.
    """
    chats = are_chats(parts, len(ids))
    if parts is None or not chats.any():
        tokens = source.read(plain, ids, rule)
    else:
        batch = TextBatch([part.string for part in parts])
        tokens = _in_plain_text(source.read(batch, ids, rule), batch, plain, parts, written)
    if rule.first:
        begins = (np.diff(tokens.bounds) > 0) & (chats | (not source.prefix))
        first = tokens.bounds[:-1][begins]
        tokens.reasons[first[tokens.reasons[first] != Reason.SPECIAL]] = Reason.FIRST
    return tokens


def are_chats(parts: Sequence[Rendered] | None, count: int) -> np.ndarray:
    """Which of `count` texts were rendered by a chat template, bool [T]."""
    if parts is None:
        return np.zeros(count, dtype=bool)
    return np.array([part.spans is not None for part in parts], dtype=bool)


def _in_plain_text(
    tokens: TokenEnds,
    batch: TextBatch,
    plain: TextBatch,
    parts: Sequence[Rendered],
    written: Sequence[Reason],
) -> TokenEnds:
    """Ends in rendered texts as ends in the plain ones; what lies outside the spans is template.

    That ends where what was said before it does.
    """
    starts, stops, positions = [], [], []
    for number, part in enumerate(parts):
        spans = [(0, len(part.string), 0)] if part.spans is None else part.spans
        start, stop, position = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        starts.append(batch.positions(number, start))
        stops.append(batch.positions(number, stop))
        positions.append(plain.positions(number, position))
    start, stop, position = map(np.concatenate, (starts, stops, positions))
    span = np.searchsorted(start, tokens.ends) - 1
    text = np.repeat(np.arange(len(parts)), np.diff(tokens.bounds))
    first = np.cumsum([0, *map(len, starts)])[:-1][text]
    inside = (span >= first) & (tokens.ends <= np.append(stop, 0)[span])
    shift = np.append(position - start, 0)[span]
    said = np.append(position + stop - start, 0)[span]
    before = np.where(span >= first, said, plain.content[plain.bounds[text]])
    outside = ~inside & are_chats(parts, len(parts))[text]
    tokens.reasons[outside & np.isin(tokens.reasons, written)] = Reason.TEMPLATE
    return tokens._replace(ends=np.where(inside, tokens.ends + shift, before))


def begins_of(ends: np.ndarray, plain: str, rendered: Sequence[Rendered]) -> np.ndarray:
    """The character from which on each pair of a text stands for it [P].

    The end of the pair before it, or what lies behind the last gap that a template has left.
    """
    begins = np.append(0, ends[:-1]) if len(ends) else ends
    for part in rendered:
        begins = np.maximum(begins, _behind_gaps(part, plain, ends))
    return begins


def _behind_gaps(part: Rendered, plain: str, ends: np.ndarray) -> np.ndarray | int:
    """For each pair, the place behind the last gap before it: what was rendered differently."""
    gaps = []
    position = 0
    for start, stop, place in part.spans or ():
        if plain[position:place].strip():
            gaps.append(place)
        position = place + stop - start
    if not gaps:
        return 0
    return np.append(0, gaps)[np.searchsorted(gaps, ends, side="left")]
