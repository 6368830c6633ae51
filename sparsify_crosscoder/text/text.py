"""Texts and conversations from one dataset or a mixture of several."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value

from .chat import plain_text
from .data_files import open_dataset
from .messages import (
    CHAT_COLUMNS,
    EXTRAS,
    OF_CONVERSATION,
    ShapeError,
    looks_like_conversation,
    normalize_messages,
    read_conversation,
)

_LOGGER = logging.getLogger(__name__)
_KEYS = ("role", "content", EXTRAS)
_BARE = ("role", "content", "from", "value")
_STRINGS = ("string", "large_string", "string_view", "null")
_NESTED = ("list", "dict", "List", "LargeList", "Sequence")
_SAMPLED = 20  # texts of a column that are looked at to see what it holds


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
        column = _text_column(part, str(name), text_column)
        part = _one_column(part, column, str(name), asked=column == text_column)
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


def _text_column(data: Dataset, name: str, text_column: str) -> str:
    for column in (text_column, *CHAT_COLUMNS):
        if column in data.column_names:
            return column
    if "input_ids" in data.column_names:
        raise ValueError(
            f"Dataset {name} is tokenised already (it has `input_ids` and no {text_column!r}), but "
            "every model reads with its own tokenizer: give the dataset with the text itself."
        )
    raise ValueError(
        f"Dataset {name} has no column {text_column!r}, only {', '.join(data.column_names)}: "
        "name the one that holds the text with `--text_column`."
    )


def _one_column(data: Dataset, column: str, name: str, asked: bool) -> Dataset:
    """That column alone, as `text` if it holds texts and as `messages` if it holds conversations.

    What else a conversation's template may need stays beside it. A column that is called as chats
    are but holds text is read as that only if it was `asked` for.
    """
    feature = data.features[column]
    where = f"Dataset {name}: column {column!r}"
    try:
        data.data.column(column).validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{where} holds text that is not UTF-8 ({error}): convert it, or name its encoding "
            "with `--data_args encoding=latin-1`."
        ) from error
    if _is_strings(feature) or type(feature).__name__ == "Json":
        is_text = _holds_texts(data, column, where)
        if is_text and column in CHAT_COLUMNS and not asked:
            raise ValueError(
                f"{where} holds plain text, not messages. Name it with `--text_column {column}` "
                "if it is to be read as text."
            )
    elif type(feature).__name__ in _NESTED and (
        column in CHAT_COLUMNS or not isinstance(_inner(feature), Value)
    ):
        is_text = False
    else:
        if type(feature).__name__ in _NESTED and _is_strings(_inner(feature)):
            raise ValueError(
                f"{where} holds lists of strings, one list in a row, not text: give each string a "
                "row of its own."
            )
        found = feature.dtype if isinstance(feature, Value) else feature
        raise ValueError(f"{where} holds {found}, not text.")
    target = "text" if is_text else "messages"
    beside = [key for key in OF_CONVERSATION if not is_text and key in data.column_names]
    data = data.select_columns([column, *beside])
    if is_text and not _is_strings(feature):
        return data.map(
            partial(_strings, column=column),
            remove_columns=column,
            features=Features({target: Value("string")}),
        )
    return data if column == target else data.rename_column(column, target)


def _holds_texts(data: Dataset, column: str, where: str) -> bool:
    """Whether a column of strings, or of mixed values, holds texts and not conversations.

    Raises ValueError for a value that is neither.
    """
    values = data.with_format(None)[column]
    if not _is_strings(data.features[column]):
        if any(isinstance(value, (list, dict)) for value in values):
            return False
        for number, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"{where} holds text in some rows and other values in others: row {number} has "
                    f"{value!r}. Make it a column of strings."
                )
    texts = (value for value in values if value and not value.isspace())
    sample = [*islice(texts, _SAMPLED)]
    if sample and not any(map(looks_like_conversation, sample)):
        return True
    if column in CHAT_COLUMNS:
        return False
    if not sample:
        return True
    _LOGGER.warning(
        "%s holds conversations as JSON, which are read as plain text, brackets and names of keys "
        "included. To have them read as chats, call the column `messages`.",
        where,
    )
    return True


def _is_strings(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in _STRINGS


def _inner(feature: Any) -> Any:
    """What a list is of; of anything else, that itself."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def _strings(row: dict[str, Any], column: str) -> dict[str, str | None]:
    return {"text": row[column]}


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
        new_fingerprint=sha256(key.encode()).hexdigest()[:32],
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
    message = _inner(features["messages"])
    return (
        not {*OF_CONVERSATION} & {*features}
        and isinstance(message, dict)
        and all(key in _BARE and _is_strings(inner) for key, inner in message.items())
    )


def _alike(parts: list[Dataset]) -> list[Dataset]:
    """The parts of a mixture, their conversations all with a place for extras if some have one."""
    chats = [part for part in parts if "messages" in part.column_names]
    sizes = {len(_inner(part.features["messages"])) for part in chats}
    if len(sizes) < 2:
        return parts
    return [_with_keys(part, _KEYS) if "messages" in part.column_names else part for part in parts]


def _has_content(data: Dataset) -> bool:
    """Whether any text is not blank; ends at the first, so usually at once."""
    if "text" in data.column_names:
        return any(text and not text.isspace() for text in data["text"])
    return any(plain_text(messages).strip() for messages in data["messages"])
