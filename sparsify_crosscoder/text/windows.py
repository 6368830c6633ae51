"""Windows of aligned tokens, at most ctx_len in each source, cut from texts (section B.1.6)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..hashing import hash_text
from .chat import Text, check_chat_template, plain_text
from .loss_reasons import loss_reason, warn_of_loss
from .pairing import BatchPairs, Rendered, begins_of, pair_tokens, render
from .roles import NO_WRITER, ROLES, WRITER, WRITERS, roles_of
from .text_loss import measure_loss
from .texts import rows_of
from .token_ends import CONTENT
from .tokenization import SourceTokenizer, source_tokenizers

# Encodings take some hundred bytes a token until their ids are read.
_CHARACTERS_AT_ONCE = 1_000_000
_LAYOUT, _CHAT_LAYOUT = "windows 4", "windows 6"
_EXPLAINED = 64  # texts that are looked at to say why nothing aligns
# Why pairs are dropped, and the column that counts them.
DROPPED = {"first token of a window": "dropped_first", "excluded token": "dropped_excluded"}


def prepare_windows(
    dataset: Dataset,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    ctx_len: int,
    chat_format: str = "template",
    template_tokens: bool = False,
    exclude_tokens: Sequence[int] = (),
    num_proc: int = 1,
    warn: bool = True,
) -> Dataset:
    """Tokenise every text with every tokenizer, align, and cut into windows of `ctx_len` tokens.

    `dataset` is what `load_texts` gives. `chat_format` "template" renders conversations with each
    tokenizer's own chat template, in which only the messages' contents align; "plain" reads them
    as `plain_text`. With `template_tokens` what the template writes is paired as well, token by
    token, where tokenizers and templates are equal. Pairs whose token of source 0 is one of
    `exclude_tokens`, or which would be the first token of a window in some source, are dropped, and
    windows left without pairs.

    Each row of the result is a window: `text_id`, the row of its text in `dataset`, and `dataset`,
    that of the datasets in a mixture that it came from, where `load_texts` says so; `num_pairs`;
    for each source s `input_ids_{s}` (at most `ctx_len`, beginning with the special tokens that
    the tokenizer puts before a text) and `pairs_{s}` (indices into `input_ids_{s}`); `starts` and
    `ends`, the characters of the text (of `plain_text` for chat) that each pair stands for, from
    the end of the text's pair before it, or behind what a chat template left out between them;
    `content_tokens_{s}`, the window's share of the text's
    tokens that could have been paired; and `dropped_first` and `dropped_excluded`, its pairs that
    were dropped for the two reasons above. Where there are conversations, `roles` and `writers` of
    the pairs (`roles_of`), with the text's `writer` if `dataset` has that column.

    Logs a warning (`warn`) where less than half of the characters of a dataset, or of what one role
    says in it, became pairs, with the commonest reason.

    Raises ValueError for tokenizers that cannot be aligned, a `ctx_len` without room for a pair, a
    missing chat template, or texts in which nothing aligns; and with `template_tokens` for
    tokenizers or templates that differ, and without a conversation that is rendered.
    """
    sources = source_tokenizers(tokenizers, reuse=False)
    if chat_format not in ("template", "plain"):
        raise ValueError(f'`chat_format` must be "template" or "plain", got {chat_format!r}.')
    if not {"text", "messages"} & set(dataset.column_names):
        raise ValueError(
            f'A dataset of texts has a column "text" or "messages" (load_texts makes one), '
            f"this one has {dataset.column_names}."
        )
    has_chats = "messages" in dataset.column_names
    if has_chats and chat_format == "template":
        for tokenizer in tokenizers:
            check_chat_template(tokenizer)
    if template_tokens:
        _check_one_template(sources, rendered=has_chats and chat_format == "template")
    shortest = max(max(len(source.prefix), 1) for source in sources) + 1
    if ctx_len < shortest:
        raise ValueError(f"`ctx_len` must be at least {shortest} here to hold a pair: {ctx_len}.")
    exclude = sorted(set(exclude_tokens))
    layout = _CHAT_LAYOUT if has_chats else _LAYOUT
    key = [layout, dataset._fingerprint, ctx_len, chat_format, exclude]
    key += ["template tokens"] * template_tokens
    key += [source.digest for source in sources]
    windows = dataset.map(
        _windows_of_batch,
        batched=True,
        batch_size=256,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_window_features(len(sources), dataset.features.get("dataset"), has_chats),
        fn_kwargs={
            "making": _Making(sources, ctx_len, chat_format, template_tokens, exclude),
        },
        num_proc=num_proc if num_proc > 1 else None,
        new_fingerprint=hash_text(repr(key))[:32],
        desc="Aligning texts",
    )
    if not len(windows):
        some = rows_of(dataset.with_format(None)[:_EXPLAINED])
        why = loss_reason([*some], sources, chat_format, exclude_tokens=exclude)
        raise ValueError(
            f"No position in any of the {len(dataset)} texts could be paired: {why}. Are they "
            "blank, shorter than two tokens, or conversations that a chat template refuses "
            "(`--chat_format plain` reads those as plain text)?"
        )
    if warn:
        loss = measure_loss(dataset, windows, sources, chat_format)
        warn_of_loss(loss, dataset, sources, chat_format, exclude)
    return windows


class _Making(NamedTuple):
    """How windows are made of texts."""

    sources: Sequence[SourceTokenizer]
    ctx_len: int
    chat_format: str
    template_tokens: bool
    exclude_tokens: Sequence[int]


def _check_one_template(sources: Sequence[SourceTokenizer], *, rendered: bool) -> None:
    """Raise ValueError where no tokens of a chat template can be paired."""
    if not rendered:
        raise ValueError(
            "--template_tokens pairs what a chat template writes: it needs conversations, and "
            "--chat_format template."
        )
    other = next((source for source in sources if source is not sources[0]), None)
    if other is not None:
        raise ValueError(
            "--template_tokens pairs tokens at equal places, so all models need one tokenizer and "
            f"one chat template; those of {sources[0].name} and {other.name} differ. Leave it off."
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


def _window_features(count: int, dataset: Any, has_chats: bool) -> Features:
    numbers = datasets.Sequence(Value("int32"))
    per_source = {
        f"{name}_{source}": numbers for name in ("input_ids", "pairs") for source in range(count)
    }
    content = {f"content_tokens_{source}": Value("int32") for source in range(count)}
    head: dict[str, Any] = {"text_id": Value("int64"), "num_pairs": Value("int32")}
    head |= {"dataset": dataset} if dataset is not None else {}
    span = {"starts": numbers, "ends": numbers}
    dropped = {name: Value("int32") for name in DROPPED.values()}
    notes = {name: datasets.Sequence(Value("int8")) for name in (ROLES, WRITERS) if has_chats}
    return Features(head | per_source | span | content | dropped | notes)


class _Text(NamedTuple):
    """What the sources made of one text."""

    ids: list[np.ndarray]
    """For each source its tokens, without special tokens around [N_s]."""
    indices: list[np.ndarray]
    """For each source the paired tokens [P]."""
    begins: np.ndarray
    """The character from which on each pair stands for the text [P]."""
    ends: np.ndarray
    """The character behind which each pair ends [P]."""
    is_content: list[np.ndarray]
    """For each source which tokens have content [N_s]."""
    template: np.ndarray
    """Which pairs are a chat template's tokens [P]."""


def _windows_of_batch(
    batch: Mapping[str, list],
    text_ids: list[int],
    *,
    making: _Making,
) -> pa.Table:
    labels = batch.get("dataset")
    features = _window_features(
        len(making.sources), None if labels is None else Value("int64"), "messages" in batch
    )
    columns: dict[str, list] = {name: [] for name in features}
    rows = list(rows_of(batch))
    shown = [plain_text(row) for row in rows] if making.chat_format == "plain" else rows
    writers = batch.get(WRITER) or [NO_WRITER] * len(rows)
    for row, text in enumerate(_align_rows(shown, making)):
        before = len(columns["text_id"])
        notes = {}
        if "messages" in batch:
            roles, wrote = roles_of(rows[row], text.ends, text.template, writers[row])
            notes = {ROLES: roles, WRITERS: wrote}
        _windows_of_text(columns, text, notes, making)
        windows = len(columns["num_pairs"]) - before
        columns["text_id"] += [text_ids[row]] * windows
        if labels is not None:
            columns["dataset"] += [labels[row]] * windows
    return pa.Table.from_arrays(
        [_arrow(columns[name], feature) for name, feature in features.items()],
        schema=features.arrow_schema,
    )


def _windows_of_text(
    columns: dict[str, list], text: _Text, notes: Mapping[str, np.ndarray], making: _Making
) -> None:
    """Append the text's windows to `columns`, all but where the text came from.

    `notes` [P] are columns with a value for each pair.
    """
    sources = making.sources
    content = [np.cumsum(is_content) for is_content in text.is_content]
    begins = text.begins
    counts: list[list[int]] = []
    capacities = [making.ctx_len - len(source.prefix) for source in sources]
    for first, stop, starts in cut_windows(text.indices, capacities):
        pairs = [
            index[first:stop] - start + len(source.prefix)
            for index, start, source in zip(text.indices, starts, sources, strict=True)
        ]
        inside = np.logical_and.reduce([index > 0 for index in pairs])
        wanted = ~np.isin(text.ids[0][text.indices[0][first:stop]], making.exclude_tokens)
        keep = inside & wanted
        if not keep.any():
            continue
        columns["dropped_first"].append(int((~inside).sum()))
        columns["dropped_excluded"].append(int((inside & ~wanted).sum()))
        columns["num_pairs"].append(int(keep.sum()))
        columns["starts"].append(begins[first:stop][keep])
        columns["ends"].append(text.ends[first:stop][keep])
        for name, values in notes.items():
            columns[name].append(values[first:stop][keep])
        last = [int(index[stop - 1]) for index in text.indices]
        for number, source in enumerate(sources):
            ids = text.ids[number][starts[number] : last[number] + 1]
            columns[f"input_ids_{number}"].append(
                np.append(np.array(source.prefix, dtype=np.int32), ids)
            )
            columns[f"pairs_{number}"].append(pairs[number][keep])
        counts.append([int(total[end]) for total, end in zip(content, last, strict=True)])
    if counts:
        # What follows the last window counts to it, so that the shares add up to the whole text.
        counts[-1] = [int(total[-1]) for total in content]
        for number, shares in enumerate(np.diff(counts, axis=0, prepend=0).T):
            columns[f"content_tokens_{number}"].extend(shares.tolist())


def _align_rows(rows: Sequence[Text], making: _Making) -> Iterator[_Text]:
    sources = making.sources
    plain = [plain_text(row) for row in rows]
    for group in _groups([len(text) for text in plain]):
        # Equal tokenizers (a model and its fine-tune) are one source, which encodes once.
        rendered = {source: _render_all(rows[group], source) for source in sources}
        ids = {
            source: source.encode([part.string for part in parts])
            for source, parts in rendered.items()
        }
        pairs = pair_tokens(
            plain[group],
            [ids[s] for s in sources],
            sources,
            [rendered[s] for s in sources],
            template_tokens=making.template_tokens,
        )
        for reason in pairs.refused.values():
            _warn_once("Some texts cannot be aligned and are left out: %s", reason)
        for number, text in enumerate(plain[group]):
            shown = [rendered[source][number] for source in dict.fromkeys(sources)]
            yield _text_of(pairs, number, sources, text, shown)


def _text_of(
    pairs: BatchPairs,
    number: int,
    sources: Sequence[SourceTokenizer],
    plain: str,
    rendered: Sequence[Rendered],
) -> _Text:
    here = slice(*pairs.bounds[number : number + 2])
    ids, indices, is_content = [], [], []
    for source, tokens, index in zip(sources, pairs.tokens, pairs.indices, strict=True):
        first, last = tokens.bounds[number : number + 2]
        # A chat template writes the special tokens itself; each window has them anyway.
        size = len(source.prefix)
        skip = size if tokens.ids[first : min(first + size, last)].tolist() == source.prefix else 0
        ids.append(tokens.ids[first + skip : last])
        indices.append(index[here] - skip)
        is_content.append(np.isin(tokens.reasons[first + skip : last], CONTENT))
    ends = pairs.ends[here]
    begins = begins_of(ends, plain, rendered)
    return _Text(ids, indices, begins, ends, is_content, pairs.template[here])


def _render_all(rows: Sequence[Text], source: SourceTokenizer) -> list[Rendered]:
    parts = []
    for row in rows:
        try:
            parts.append(render(row, source))
        except TemplateError as error:
            _warn_once(
                "The chat template of %s refuses some conversations, which are left out: %s",
                source.name,
                str(error),
            )
            parts.append(Rendered("", []))
    return parts


@cache
def _warn_once(message: str, *parts: str) -> None:
    logging.getLogger(__name__).warning(message, *parts)


def _groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Runs of rows with up to `_CHARACTERS_AT_ONCE` characters, or one longer row."""
    first, total = 0, 0
    for row, length in enumerate(lengths):
        if row > first and total + length > _CHARACTERS_AT_ONCE:
            yield slice(first, row)
            first, total = row, 0
        total += length
    if lengths:
        yield slice(first, len(lengths))


def _arrow(values: list, feature: Any) -> pa.Array:
    if isinstance(feature, Value):
        return pa.array(values, type=feature.pa_type)
    bounds = np.cumsum([0, *map(len, values)], dtype=np.int32)
    kind = feature.feature.pa_type
    dtype = kind.to_pandas_dtype()
    flat = np.concatenate([np.empty(0, dtype=dtype), *values]).astype(dtype)
    return pa.ListArray.from_arrays(pa.array(bounds), pa.array(flat, type=kind))
