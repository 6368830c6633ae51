"""Windows of aligned tokens, at most ctx_len in each source, cut from texts (section B.1.6)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from . import alignment
from .chat import check_chat_template, plain_text, render_chat

# Offsets come as Python tuples, some 40 bytes for each character of the texts encoded at once.
_CHARACTERS_AT_ONCE = 1_000_000
_LAYOUT = "windows 2"
# Why pairs are dropped, and the column that counts them.
_DROPPED = {"first token of a window": "dropped_first", "excluded token": "dropped_excluded"}

Spans = list[tuple[int, int, int]]


def prepare_windows(
    dataset: Dataset,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    ctx_len: int,
    chat_format: str = "template",
    exclude_tokens: Sequence[int] = (),
    num_proc: int = 1,
) -> Dataset:
    """Tokenise every text with every tokenizer, align, and cut into windows of `ctx_len` tokens.

    `dataset` is what `load_texts` gives. `chat_format` "template" renders conversations with each
    tokenizer's own chat template, in which only the messages' contents align; "plain" reads them
    as `plain_text`. Pairs whose token of source 0 is one of `exclude_tokens`, or which would be
    the first token of a window in some source, are dropped, and windows left without pairs.

    Each row of the result is a window: `text_id`, the row of its text in `dataset`; `num_pairs`;
    for each source s `input_ids_{s}` (at most `ctx_len`, beginning with the special tokens that
    the tokenizer puts before a text) and `pairs_{s}` (indices into `input_ids_{s}`); `ends`, the
    character of the text (of `plain_text` for chat) where each pair ends; `content_tokens_{s}`,
    the window's share of the text's tokens that could have been paired; and `dropped_first` and
    `dropped_excluded`, its pairs that were dropped for the two reasons above.

    Raises ValueError for tokenizers that cannot be aligned, a `ctx_len` without room for a pair, a
    missing chat template, or texts in which nothing aligns.
    """
    alignment.check_tokenizers(tokenizers)
    if chat_format not in ("template", "plain"):
        raise ValueError(f'`chat_format` must be "template" or "plain", got {chat_format!r}.')
    if not {"text", "messages"} & set(dataset.column_names):
        raise ValueError(
            f'A dataset of texts has a column "text" or "messages" (load_texts makes one), '
            f"this one has {dataset.column_names}."
        )
    if "messages" in dataset.column_names and chat_format == "template":
        for tokenizer in tokenizers:
            check_chat_template(tokenizer)
    sources = [_tokenizer_source(tokenizer) for tokenizer in tokenizers]
    shortest = max(max(len(source.prefix), 1) for source in sources) + 1
    if ctx_len < shortest:
        raise ValueError(f"`ctx_len` must be at least {shortest} here to hold a pair: {ctx_len}.")
    exclude = sorted(set(exclude_tokens))
    key = [_LAYOUT, dataset._fingerprint, ctx_len, chat_format, exclude]
    key += [source.digest for source in sources]
    windows = dataset.map(
        _windows_of_batch,
        batched=True,
        batch_size=256,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_window_features(len(sources)),
        fn_kwargs={
            "sources": sources,
            "ctx_len": ctx_len,
            "chat_format": chat_format,
            "exclude_tokens": exclude,
        },
        num_proc=num_proc if num_proc > 1 else None,
        new_fingerprint=sha256(repr(key).encode()).hexdigest()[:32],
        desc="Aligning texts",
    )
    if not len(windows):
        raise ValueError(
            f"No position in any of the {len(dataset)} texts could be paired. Are they blank, "
            "shorter than two tokens, or conversations that a chat template refuses "
            "(`--chat_format plain` reads those as plain text)?"
        )
    return windows


@dataclass
class AlignmentReport:
    """What became of the texts."""

    texts: int
    """Texts given."""

    texts_without_pairs: int
    """Texts of which no window is left."""

    windows: int
    """Windows of at most ctx_len tokens per source."""

    pairs: int
    """Aligned positions in all windows."""

    tokens: list[int]
    """For each source, the tokens that its model reads, special tokens included."""

    aligned_fraction: list[float]
    """For each source, pairs over the tokens that are neither special nor white space."""

    dropped: dict[str, int]
    """Aligned positions that were left out, by reason."""


def alignment_report(windows: Dataset, num_texts: int) -> AlignmentReport:
    """Count what `prepare_windows` made of `num_texts` texts."""
    count = sum(name.startswith("input_ids_") for name in windows.column_names)
    texts: set[int] = set()
    pairs, tokens, content = 0, [0] * count, [0] * count
    dropped = dict.fromkeys(_DROPPED, 0)
    for batch in windows.with_format("arrow").iter(batch_size=4096):
        table: Any = batch
        texts.update(table["text_id"].unique().to_pylist())
        pairs += int(table["num_pairs"].to_numpy().sum())
        for reason, column in _DROPPED.items():
            dropped[reason] += int(table[column].to_numpy().sum())
        for source in range(count):
            ids = table[f"input_ids_{source}"]
            tokens[source] += sum(len(chunk.flatten()) for chunk in ids.chunks)
            content[source] += int(table[f"content_tokens_{source}"].to_numpy().sum())
    return AlignmentReport(
        texts=num_texts,
        texts_without_pairs=num_texts - len(texts),
        windows=len(windows),
        pairs=pairs,
        tokens=tokens,
        aligned_fraction=[pairs / max(number, 1) for number in content],
        dropped=dropped,
    )


def cut_windows(
    indices: Sequence[np.ndarray], capacities: Sequence[int]
) -> list[tuple[int, int, list[int]]]:
    """Cut a text's pairs into windows of at most `capacities[s]` tokens of source s.

    `indices` are a text's aligned token indices. Returns, for each window, its first pair, the
    pair behind its last, and the index of its first token in each source: the token after the last
    pair of the window before. Where the next pair lies further away than a window is long, whole
    windows' lengths of that source are skipped.
    """
    windows = []
    first, starts = 0, [0] * len(indices)
    while first < len(indices[0]):
        limits = zip(indices, starts, capacities, strict=True)
        stop = min(int(np.searchsorted(index, start + size)) for index, start, size in limits)
        if stop > first:
            windows.append((first, stop, starts))
            starts = [int(index[stop - 1]) + 1 for index in indices]
            first = stop
        else:
            gaps = [int(index[first]) - start for index, start in zip(indices, starts, strict=True)]
            starts = [
                start + gap // size * size
                for start, gap, size in zip(starts, gaps, capacities, strict=True)
            ]
    return windows


class _Source(NamedTuple):
    tokenizer: PreTrainedTokenizerBase
    prefix: np.ndarray
    special: np.ndarray
    digest: str


class _Tokens(NamedTuple):
    ids: np.ndarray
    content: np.ndarray
    """Which tokens have content [N]."""
    candidates: np.ndarray
    """Where the content of each token ends, -1 where the token cannot be paired [N]."""


def _tokenizer_source(tokenizer: PreTrainedTokenizerBase) -> _Source:
    probe = tokenizer("a", return_special_tokens_mask=True)
    prefix = list(probe["input_ids"])[: list(probe["special_tokens_mask"]).index(0)]
    # The call above has also undone any truncation and padding of earlier calls.
    state = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str()
    key = repr((prefix, tokenizer.chat_template, state))
    return _Source(
        tokenizer=tokenizer,
        prefix=alignment.as_ids(prefix),
        special=alignment.special_ids(tokenizer),
        digest=sha256(key.encode()).hexdigest(),
    )


def _window_features(count: int) -> Features:
    numbers = datasets.Sequence(Value("int32"))
    per_source = {
        f"{name}_{source}": numbers for name in ("input_ids", "pairs") for source in range(count)
    }
    content = {f"content_tokens_{source}": Value("int32") for source in range(count)}
    head = {"text_id": Value("int64"), "num_pairs": Value("int32")}
    dropped = {name: Value("int32") for name in _DROPPED.values()}
    return Features(head | per_source | {"ends": numbers} | content | dropped)


def _windows_of_batch(
    batch: Mapping[str, list],
    text_ids: list[int],
    *,
    sources: Sequence[_Source],
    ctx_len: int,
    chat_format: str,
    exclude_tokens: Sequence[int],
) -> pa.Table:
    features = _window_features(len(sources))
    columns: dict[str, list] = {name: [] for name in features}
    # Equal tokenizers (a model and its fine-tune) encode once.
    unique = {source.digest: source for source in sources}
    readers = {key: _read(source, batch, chat_format) for key, source in unique.items()}
    for text_id in text_ids:
        read = {key: next(reader) for key, reader in readers.items()}
        tokens = [read[source.digest] for source in sources]
        _windows_of_text(columns, text_id, tokens, sources, ctx_len, exclude_tokens)
    return pa.Table.from_arrays(
        [_arrow(columns[name], feature) for name, feature in features.items()],
        schema=features.arrow_schema,
    )


def _windows_of_text(
    columns: dict[str, list],
    text_id: int,
    tokens: Sequence[_Tokens],
    sources: Sequence[_Source],
    ctx_len: int,
    exclude_tokens: Sequence[int],
) -> None:
    """Append the text's windows to `columns`."""
    indices, ends = alignment.align_offsets([source.candidates for source in tokens])
    content = [np.cumsum(source.content) for source in tokens]
    counts: list[list[int]] = []
    capacities = [ctx_len - len(source.prefix) for source in sources]
    for first, stop, starts in cut_windows(indices, capacities):
        pairs = [
            index[first:stop] - start + len(source.prefix)
            for index, start, source in zip(indices, starts, sources, strict=True)
        ]
        inside = np.logical_and.reduce([index > 0 for index in pairs])
        wanted = ~np.isin(tokens[0].ids[indices[0][first:stop]], exclude_tokens)
        keep = inside & wanted
        if not keep.any():
            continue
        columns["dropped_first"].append(int((~inside).sum()))
        columns["dropped_excluded"].append(int((inside & ~wanted).sum()))
        columns["text_id"].append(text_id)
        columns["num_pairs"].append(int(keep.sum()))
        columns["ends"].append(ends[first:stop][keep])
        last = [int(index[stop - 1]) for index in indices]
        for number, source in enumerate(sources):
            ids = tokens[number].ids[starts[number] : last[number] + 1]
            columns[f"input_ids_{number}"].append(np.concatenate([source.prefix, ids]))
            columns[f"pairs_{number}"].append(pairs[number][keep])
        counts.append([int(total[end]) for total, end in zip(content, last, strict=True)])
    if counts:
        # What follows the last window counts to it, so that the shares add up to the whole text.
        counts[-1] = [int(total[-1]) for total in content]
        for number, shares in enumerate(np.diff(counts, axis=0, prepend=0).T):
            columns[f"content_tokens_{number}"].extend(shares.tolist())


def _read(source: _Source, batch: Mapping[str, list], chat_format: str) -> Iterator[_Tokens]:
    """The tokens of each row as one source reads it, without the special tokens around it."""
    rows = [_string_and_spans(*row, source, chat_format) for row in _rows(batch)]
    prefix = source.prefix.tolist()
    for group in _groups([len(string) for string, _ in rows]):
        strings = [string for string, _ in rows[group]]
        encoding = source.tokenizer(
            strings, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        encoded: Any = zip(
            rows[group], encoding["input_ids"], encoding["offset_mapping"], strict=True
        )
        for (string, spans), ids, spans_of_tokens in encoded:
            # A chat template writes the special tokens itself; each window has them anyway.
            skip = len(prefix) if spans is not None and ids[: len(prefix)] == prefix else 0
            ids = alignment.as_ids(ids[skip:])
            offsets = alignment.as_offsets(spans_of_tokens[skip:])
            reach = alignment.content_reach(string)
            ends = alignment.content_ends(offsets, np.isin(ids, source.special), reach)
            complete = alignment.completed(ends, offsets) >= 0
            if spans is not None:
                ends = _canonical(ends, spans)
            yield _Tokens(ids, ends >= 0, np.where(complete, ends, -1))


def _rows(batch: Mapping[str, list]) -> Iterator[tuple[str | None, list | None]]:
    empty = [None] * len(next(iter(batch.values())))
    yield from zip(batch.get("text", empty), batch.get("messages", empty), strict=True)


def _string_and_spans(
    text: str | None, messages: list | None, source: _Source, chat_format: str
) -> tuple[str, Spans | None]:
    if messages is None:
        return text or "", None
    if chat_format == "plain":
        return plain_text(messages), None
    try:
        return render_chat(messages, source.tokenizer)
    except TemplateError as error:
        _warn_once(source.tokenizer.name_or_path, str(error))
        return "", []


@cache
def _warn_once(name: str, reason: str) -> None:
    logging.getLogger(__name__).warning(
        "The chat template of %s refuses some conversations, which are left out: %s", name, reason
    )


def _groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Runs of rows with up to `_CHARACTERS_AT_ONCE` characters, or one longer row."""
    first, total = 0, 0
    for row, length in enumerate(lengths):
        if row > first and total + length > _CHARACTERS_AT_ONCE:
            yield slice(first, row)
            first, total = row, 0
        total += length
    yield slice(first, len(lengths))


def _canonical(ends: np.ndarray, spans: Spans) -> np.ndarray:
    """Positions in the rendered string as positions in the plain text, -1 outside of all spans."""
    if not spans:
        return np.full_like(ends, -1)
    starts, stops, positions = np.array(spans).T
    span = np.searchsorted(starts, ends) - 1
    inside = (span >= 0) & (ends <= stops[span])
    return np.where(inside, ends - starts[span] + positions[span], -1)


def _arrow(values: list, feature: Any) -> pa.Array:
    if isinstance(feature, Value):
        return pa.array(values, type=feature.pa_type)
    bounds = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.concatenate([np.empty(0, dtype=np.int32), *values]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(bounds), pa.array(flat))
