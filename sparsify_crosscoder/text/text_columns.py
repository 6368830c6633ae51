"""The column of a dataset that holds texts or conversations, found and looked over."""

import logging
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from .messages import CHAT_COLUMNS, OF_CONVERSATION, looks_like_conversation

_STRINGS = ("string", "large_string", "string_view", "null")
_NESTED = ("list", "dict", "List", "LargeList", "Sequence")
_SAMPLED = 20  # texts of a column that are looked at to see what it holds


def text_column_of(data: Dataset, name: str, text_column: str) -> str:
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


def one_column(data: Dataset, column: str, name: str, asked: bool) -> Dataset:
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
    if is_strings(feature) or type(feature).__name__ == "Json":
        is_text = _holds_texts(data, column, where)
        if is_text and column in CHAT_COLUMNS and not asked:
            raise ValueError(
                f"{where} holds plain text, not messages. Name it with `--text_column {column}` "
                "if it is to be read as text."
            )
    elif type(feature).__name__ in _NESTED and (
        column in CHAT_COLUMNS or not isinstance(inner_of(feature), Value)
    ):
        is_text = False
    else:
        if type(feature).__name__ in _NESTED and is_strings(inner_of(feature)):
            raise ValueError(
                f"{where} holds lists of strings, one list in a row, not text: give each string a "
                "row of its own."
            )
        found = feature.dtype if isinstance(feature, Value) else feature
        raise ValueError(f"{where} holds {found}, not text.")
    target = "text" if is_text else "messages"
    beside = [key for key in OF_CONVERSATION if not is_text and key in data.column_names]
    data = data.select_columns([column, *beside])
    if is_text and not is_strings(feature):
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
    if not is_strings(data.features[column]):
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
    logging.getLogger(__name__).warning(
        "%s holds conversations as JSON, which are read as plain text, brackets and names of keys "
        "included. To have them read as chats, call the column `messages`.",
        where,
    )
    return True


def is_strings(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in _STRINGS


def inner_of(feature: Any) -> Any:
    """What a list is of; of anything else, that itself."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def _strings(row: dict[str, Any], column: str) -> dict[str, str | None]:
    return {"text": row[column]}
