"""Texts and conversations from one dataset or a mixture of several."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from ..hashing import hash_text
from .chat import Text, plain_text
from .messages import EXTRAS, OF_CONVERSATION, ShapeError, normalize_messages, read_conversation
from .open_dataset import open_dataset
from .text_columns import inner_of, is_strings, one_column, text_column_of

_KEYS = ("role", "content", EXTRAS)
_BARE = ("role", "content", "from", "value")


def load_texts(
    dataset: str | Path,
    *,
    split: str = "train",
    data_args: Mapping[str, Any] | str | None = None,
    text_column: str = "text",
    extra_datasets: Sequence[str | Path] = (),
    weights: Sequence[float] = (),
    max_examples: int | None = None,
    shuffle_seed: int = 42,
) -> Dataset:
    """Load one dataset, or a mixture of several, as a column of plain texts or of conversations.

    Each of `dataset` and `extra_datasets` is a name on the Hugging Face hub, a folder that
    `Dataset.save_to_disk` wrote, a folder of data files, or one file (`data_files.BUILDERS` lists
    the endings; compressed ones are read too; .txt has one text per line, which
    `data_args={"sample_by": "paragraph"}` changes). Names of files are taken literally. `data_args`
    go to `datasets.load_dataset` for `dataset` alone; a string is read by `read_data_args`.

    A dataset without `text_column` is read as chat if it has a column "messages", "conversation" or
    "conversations" of what `read_conversation` knows: lists of messages, or strings that hold them.

    Every dataset is shuffled; several are then mixed in the proportions of `weights` (equal ones
    without) until the first is exhausted, and `max_examples` are kept. The result has a column
    `text` (strings) or `messages` (role, content and, where any message has some, the extras of
    `normalize_messages`), or both where plain text and chat are mixed, each row null in one of
    them, and `dataset`, a class label: which dataset the row came from.

    Raises FileNotFoundError for a dataset that does not exist and ValueError for one without text.
    """
    names = [dataset, *extra_datasets]
    if weights and (len(weights) != len(names) or min(weights) <= 0):
        raise ValueError(
            f"`weights` must be one positive number for each of the {len(names)} datasets, "
            f"got {list(weights)}."
        )
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"`max_examples` must be at least 1, got {max_examples}.")
    parts = []
    labels = ClassLabel(names=_distinct([str(name) for name in names]))
    for number, name in enumerate(names):
        part = open_dataset(str(name), split, data_args if number == 0 else None)
        column = text_column_of(part, str(name), text_column)
        part = one_column(part, column, str(name), asked=column == text_column)
        part = _labelled(part, labels, number)
        part = part.shuffle(seed=shuffle_seed, keep_in_memory=True)
        if max_examples is not None:
            part = part.select(range(min(max_examples, len(part))))
        part = _normalize(part, str(name), column)
        if not _has_content(part):
            raise ValueError(f"Dataset {name}: all texts in column {column!r} are blank.")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    mixture = datasets.interleave_datasets(
        _alike(parts),
        probabilities=[weight / sum(weights) for weight in weights] or None,
        seed=shuffle_seed,
        stopping_strategy="first_exhausted",
    )
    return mixture.select(range(min(max_examples or len(mixture), len(mixture))))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those given several times with a number behind."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def _labelled(data: Dataset, labels: ClassLabel, number: int) -> Dataset:
    """With a column `dataset` that says where each row came from."""
    key = repr((data._fingerprint, labels.names, number))
    return data.add_column(
        "dataset",
        np.full(len(data), number),
        new_fingerprint=hash_text(key)[:32],
        feature=labels,
    )


def _normalize(data: Dataset, name: str, column: str) -> Dataset:
    """Texts as plain strings, conversations as role and content, with extras if there are some."""
    if "text" in data.column_names:
        is_plain = data.features["text"] == Value("string")
        return data if is_plain else data.cast_column("text", Value("string"))
    indices = data._indices
    may_have_extras = not _is_bare(data.features)
    read = data.map(
        partial(
            _read_batch,
            where=f"Dataset {name}, column {column!r}",
            numbers=None if indices is None else indices.column(0).to_numpy(),
            keys=_KEYS if may_have_extras else _KEYS[:2],
        ),
        batched=True,
        with_indices=True,
        remove_columns=data.column_names,
        features=_chat_features(data, _KEYS if may_have_extras else _KEYS[:2]),
        desc="Reading conversations",
    )
    if may_have_extras:
        parts = [chunk.flatten().field(EXTRAS) for chunk in read.data.column("messages").chunks]
        if all(part.null_count == len(part) for part in parts):
            return _with_keys(read, _KEYS[:2])
    return read


def _read_batch(
    batch: dict[str, list],
    rows: list[int],
    where: str,
    numbers: np.ndarray | None,
    keys: Sequence[str],
) -> dict[str, list]:
    result = []
    for place, (row, value) in enumerate(zip(rows, batch["messages"], strict=True)):
        about = {key: batch[key][place] for key in OF_CONVERSATION if key in batch}
        try:
            messages = normalize_messages(read_conversation(value), about)
        except ShapeError as error:
            number = row if numbers is None else int(numbers[row])
            raise ValueError(f"{where}, row {number} (from 0): {error}") from error
        result.append(messages)
    return _select_keys({"messages": result, "dataset": batch["dataset"]}, keys)


def _select_keys(batch: dict[str, list], keys: Sequence[str]) -> dict[str, list]:
    messages = [
        [{key: message.get(key) for key in keys} for message in messages]
        for messages in batch["messages"]
    ]
    return {**batch, "messages": messages}


def _with_keys(data: Dataset, keys: Sequence[str]) -> Dataset:
    """The same conversations with or without a place for extras."""
    return data.map(
        partial(_select_keys, keys=keys),
        batched=True,
        features=_chat_features(data, keys),
        desc="Reading conversations",
    )


def _chat_features(data: Dataset, keys: Sequence[str]) -> Features:
    messages = [{key: Value("string") for key in keys}]
    return Features({"messages": messages, "dataset": data.features["dataset"]})


def _is_bare(features: Features) -> bool:
    """Whether conversations can have nothing but who says what, as strings."""
    message = inner_of(features["messages"])
    return (
        not {*OF_CONVERSATION} & {*features}
        and isinstance(message, dict)
        and all(key in _BARE and is_strings(inner) for key, inner in message.items())
    )


def _alike(parts: list[Dataset]) -> list[Dataset]:
    """The parts of a mixture, their conversations all with a place for extras if some have one."""
    chats = [part for part in parts if "messages" in part.column_names]
    sizes = {len(inner_of(part.features["messages"])) for part in chats}
    if len(sizes) < 2:
        return parts
    return [_with_keys(part, _KEYS) if "messages" in part.column_names else part for part in parts]


def _has_content(data: Dataset) -> bool:
    """Whether any text is not blank; ends at the first, so usually at once."""
    if "text" in data.column_names:
        return any(text and not text.isspace() for text in data["text"])
    return any(plain_text(messages).strip() for messages in data["messages"])


def rows_of(batch: Mapping[str, list]) -> Iterator[Text]:
    """The texts in a batch of what `load_texts` gives."""
    empty = [None] * len(next(iter(batch.values())))
    texts, chats = batch.get("text", empty), batch.get("messages", empty)
    for text, messages in zip(texts, chats, strict=True):
        yield (text or "") if messages is None else messages
