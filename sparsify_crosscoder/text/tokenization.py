"""What each source's tokenizer makes of texts: token ids, and where in the text they end."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from itertools import chain, pairwise
from unicodedata import category

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..hashing import hash_text
from .spelling import Spelling
from .text_batch import TextBatch, cumulative, is_content, utf8
from .token_ends import DEFAULT_RULE, NonContent, Reason, TokenEnds

# Conjoining vowels and finals of Hangul: with marks, all that normalisation joins to what precedes.
_JAMO = (*range(0x1160, 0x1200), *range(0xD7B0, 0xD800))


class SourceTokenizer:
    """A source's tokenizer, with what its tokens spell and which of them are special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.spelling = Spelling(tokenizer)
        special = special_ids(tokenizer)
        self._is_special = np.zeros(max(len(tokenizer), *special.tolist(), 0) + 2, dtype=bool)
        self._is_special[special] = True
        bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        full = tokenizer("a", verbose=False)["input_ids"]
        first = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        self.prefix: list[int] = list(full[:first])
        """Special tokens that the tokenizer puts before a text."""
        self.suffix: list[int] = list(full[first + len(bare) :])
        """Special tokens that it puts behind a text."""

    @property
    def name(self) -> str:
        """For messages: where the tokenizer came from, and its class."""
        return f"{self.tokenizer.name_or_path or 'unnamed'} ({type(self.tokenizer).__name__})"

    @cached_property
    def digest(self) -> str:
        """Equal for tokenizers that make the same tokens and the same chats of every text."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            _undo_truncation_and_padding(tokenizer)
            state: object = tokenizer.backend_tokenizer.to_str()
        else:
            added = sorted((id, str(token)) for id, token in tokenizer.added_tokens_decoder.items())
            vocab = sorted(tokenizer.get_vocab().items(), key=repr)
            state = (type(tokenizer).__qualname__, sorted(tokenizer.init_kwargs), vocab, added)
        key = (self.prefix, self.suffix, tokenizer.chat_template, state)
        return hash_text(repr(key), "surrogatepass")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts' token ids, whole and without the special tokens around a text."""
        if not texts:
            return []
        utf8(texts)
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or _is_customised(tokenizer):
            return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        _undo_truncation_and_padding(tokenizer)
        backend = tokenizer.backend_tokenizer
        backend.encode_special_tokens = tokenizer.split_special_tokens
        # A third faster than the tokenizer's own call, which also computes offsets.
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def read(
        self, batch: TextBatch, ids: Sequence[Sequence[int]], rule: NonContent = DEFAULT_RULE
    ) -> TokenEnds:
        """Find where each token ends, given what `encode` made of the batch's texts.

        Tokens that spell the texts, but for white space, are counted off in bytes. Where a
        tokenizer has rewritten a text (case, composition, unknown characters) its character
        offsets are used instead; if it has none, the text is refused.
        """
        flat = np.array(list(chain.from_iterable(ids)), dtype=np.int32)
        bounds = np.cumsum([0, *map(len, ids)])
        ends, reasons, unspelled = self._spelled(batch, flat, bounds)
        refused: dict[int, str] = {}
        for number in unspelled:
            here = slice(*bounds[number : number + 2])
            known = self._by_content(batch, number, flat[here])
            known = known or self._by_offsets(batch, number, ids[number])
            if known is None:
                refused[number] = self._difference(batch.texts[number], ids[number])
                known = batch.content[batch.bounds[number]], Reason.UNREAD
            ends[here], reasons[here] = known
        if rule.token_ids:
            reasons[np.isin(flat, list(rule.token_ids))] = Reason.EXCLUDED
        reasons[self._is_special[np.minimum(flat, len(self._is_special) - 1)]] = Reason.SPECIAL
        return TokenEnds(flat, bounds, ends, reasons, refused)

    def _spelled(
        self, batch: TextBatch, ids: np.ndarray, bounds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Ends and reasons of tokens that spell their text; and the texts that are not spelled."""
        data, lengths = self.spelling.read(ids)
        read = cumulative(lengths)
        unspelled: list[int] = []
        if data != batch.data or not np.array_equal(read[bounds], batch.bounds):
            said = [data[slice(*pair)] for pair in pairwise(read[bounds])]
            written = [batch.data[slice(*pair)] for pair in pairwise(batch.bounds)]
            unspelled = [
                i for i, pair in enumerate(zip(said, written, strict=True)) if len({*pair}) > 1
            ]
            shift = np.repeat(batch.bounds[:-1] - read[bounds[:-1]], np.diff(bounds))
            stops = np.clip(read[1:] + shift, 0, len(batch.data))
            starts = np.clip(read[:-1] + shift, 0, len(batch.data))
        else:
            starts, stops = read[:-1], read[1:]
        ends = batch.content[stops]
        return ends, _reasons(blank=ends == batch.content[starts]), unspelled

    def _by_content(
        self, batch: TextBatch, number: int, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The same for one text that the tokens spell but for white space, None if they do not."""
        if not self.spelling.known:
            return None
        data, lengths = self.spelling.read(ids)
        here = slice(*batch.bounds[number : number + 2])
        try:
            visible = is_content(data)
        except UnicodeDecodeError:
            return None
        spelled, written = (np.frombuffer(some, np.uint8) for some in (data, batch.data[here]))
        if not np.array_equal(spelled[visible], written[batch.is_content[here]]):
            return None
        read = cumulative(visible)[cumulative(lengths)]
        blank = read[1:] == read[:-1]
        return read[1:] + batch.content[here.start], _reasons(blank)

    def _by_offsets(
        self, batch: TextBatch, number: int, ids: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The same from the character offsets of one text's tokens, None without offsets."""
        if not self.tokenizer.is_fast:
            return None
        text = batch.texts[number]
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        assert list(encoding["input_ids"]) == list(ids)
        starts, stops = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        blank = batch.positions(number, stops) <= batch.positions(number, starts)
        # What a tokenizer drops or composes belongs to no span: it is read with the token before.
        following = _later_minimum(np.where(stops > starts, starts, len(text)), len(text))
        shared = stops > following
        inside = shared | _joins_on(text)[following]
        ends = batch.positions(number, np.where(inside, stops, following))
        for first, last in _runs(shared):
            # Characters that were split but not rewritten are still spelled by their tokens.
            data, lengths = self.spelling.read(np.array(ids[first : last + 1]))
            if data == text[starts[first] : stops[last]].encode() and not inside[last]:
                begin = batch.character_starts[batch.character_bounds[number] + starts[first]]
                ends[first:last] = batch.content[begin + np.cumsum(lengths)[:-1]]
                inside[first:last] = False
        return ends, np.where(inside & ~blank, Reason.INSIDE_CHARACTER, _reasons(blank))

    def _difference(self, text: str, ids: Sequence[int]) -> str:
        spelled = self.spelling.join(ids).decode(errors="replace")
        written, read = ("".join(string.split()) for string in (text, spelled))
        at = next(
            (i for i, (a, b) in enumerate(zip(written, read, strict=False)) if a != b),
            min(len(written), len(read)),
        )
        return (
            f"the tokenizer {self.name} gives no character offsets, and its tokens do not spell "
            f"the text: where that has {written[at : at + 20]!r} they have {read[at : at + 20]!r}. "
            "Load its fast version (AutoTokenizer.from_pretrained with a tokenizer.json), or "
            "convert it once with transformers.convert_slow_tokenizer and save that."
        )


def source_tokenizers(
    tokenizers: Sequence[PreTrainedTokenizerBase], reuse: bool = True
) -> list[SourceTokenizer]:
    """Prepare one tokenizer per source; equal tokenizers share one `SourceTokenizer`.

    With `reuse` those of earlier calls are taken, which a tokenizer that was changed inside since
    would not notice.

    Raises ValueError for fewer than two tokenizers.
    """
    if len(tokenizers) < 2:
        raise ValueError(
            f"Alignment needs a tokenizer for each of at least two sources, got {len(tokenizers)}."
        )
    sources: list[SourceTokenizer] = []
    for tokenizer in tokenizers:
        if reuse:
            # What a user may well change between two calls is part of the key.
            probe = tuple(tokenizer("a", verbose=False)["input_ids"])
            source = _prepared(tokenizer, len(tokenizer), probe, repr(tokenizer.chat_template))
        else:
            source = SourceTokenizer(tokenizer)
        equal = (other for other in sources if _is_equal(source, other))
        sources.append(next(equal, source))
    return sources


def special_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids that stand for no text: all special tokens but a separate unknown token."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = added | set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token
    if unknown not in (None, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token):
        ids.discard(tokenizer.convert_tokens_to_ids(str(unknown)))
    return np.array(sorted(ids), dtype=np.int32)


@lru_cache(maxsize=16)
def _prepared(tokenizer: PreTrainedTokenizerBase, *_state: object) -> SourceTokenizer:
    return SourceTokenizer(tokenizer)


def _is_equal(one: SourceTokenizer, other: SourceTokenizer) -> bool:
    if one is other:
        return True
    return len(one.tokenizer) == len(other.tokenizer) and one.digest == other.digest


def _is_customised(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether its class does more to a text than to hand it to the tokenizers library."""
    names = ("__call__", "_encode_plus")
    return any(
        getattr(type(tokenizer), name) is not getattr(PreTrainedTokenizerFast, name)
        for name in names
    )


def _undo_truncation_and_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """Forget the truncation and padding of earlier calls, which the library keeps."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()


def _later_minimum(values: np.ndarray, last: int) -> np.ndarray:
    """For every value the smallest of those behind it, and `last` for the last."""
    later = np.minimum.accumulate(values[:0:-1])[::-1]
    return np.append(later, last)[: len(values)]


def _reasons(blank: np.ndarray) -> np.ndarray:
    """The reasons of tokens of which it is known which are white space, uint8."""
    return np.where(blank, np.uint8(Reason.WHITE_SPACE), np.uint8(Reason.PAIRED))


def _runs(marked: np.ndarray) -> Iterator[tuple[int, int]]:
    """First index of every run of marked tokens, and the index behind its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    for first, behind in edges.reshape(-1, 2).tolist():
        if behind < len(marked):
            yield first, behind


def _joins_on(text: str) -> np.ndarray:
    """For every position in a text: may normalisation join its character to the one before?"""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return np.append(np.isin(codes, _joining_codes()), False)


@cache
def _joining_codes() -> np.ndarray:
    marks: Iterable[int] = (code for code in range(0x110000) if category(chr(code))[0] == "M")
    return np.array([*marks, *_JAMO], dtype=np.uint32)
