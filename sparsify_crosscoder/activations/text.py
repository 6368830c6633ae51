"""Texts and conversations from one dataset or a mixture of several."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets.exceptions import DatasetsError

from .chat import normalize_messages, plain_text

CHAT_COLUMNS = ("messages", "conversation", "conversations")
_CHAT_FEATURES = Features({"messages": [{"role": Value("string"), "content": Value("string")}]})
_STRINGS = ("string", "large_string", "string_view", "null")
_BUILDERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}


def load_texts(
    dataset: str | Path,
    *,
    split: str = "train",
    data_args: Mapping[str, Any] | None = None,
    text_column: str = "text",
    extra_datasets: Sequence[str | Path] = (),
    weights: Sequence[float] = (),
    max_examples: int | None = None,
    shuffle_seed: int = 42,
) -> Dataset:
    """Load one dataset, or a mixture of several, as a column of plain texts or of conversations.

    Each of `dataset` and `extra_datasets` is a name on the Hugging Face hub, a folder that
    `Dataset.save_to_disk` wrote, a folder of data files, or one .jsonl, .json, .csv, .parquet or
    .txt file (one text per line; `data_args={"sample_by": "paragraph"}` changes that). `data_args`
    go to `datasets.load_dataset` for `dataset` alone. A dataset without `text_column` is read as
    chat if it has a column "messages", "conversation" or "conversations".

    Every dataset is shuffled; several are then mixed in the proportions of `weights` (equal ones
    without) until the first is exhausted, and `max_examples` are kept. The result has a column
    `text` (strings) or `messages` (role and content), or both where plain text and chat are mixed,
    each row null in one of them, and `dataset`, a class label: which dataset the row came from.

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
        part = _open(str(name), split, data_args or {} if number == 0 else {})
        column = _text_column(part, str(name), text_column)
        part = _labelled(_one_column(part, column), labels, number)
        part = part.shuffle(seed=shuffle_seed, keep_in_memory=True)
        if max_examples is not None:
            part = part.select(range(min(max_examples, len(part))))
        part = _normalize(part)
        if not _has_content(part):
            raise ValueError(f"Dataset {name}: all texts in column {column!r} are blank.")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    mixture = datasets.interleave_datasets(
        parts,
        probabilities=[weight / sum(weights) for weight in weights] or None,
        seed=shuffle_seed,
        stopping_strategy="first_exhausted",
    )
    return mixture.select(range(min(max_examples or len(mixture), len(mixture))))


def _open(name: str, split: str, data_args: Mapping[str, Any]) -> Dataset:
    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            data = _select_split(datasets.load_from_disk(str(path)), split)
        elif path.is_file():
            if path.suffix not in _BUILDERS:
                raise ValueError(f"a file must be one of {', '.join(_BUILDERS)}")
            builder, files = _BUILDERS[path.suffix], str(path)
            data = datasets.load_dataset(builder, data_files=files, split=split, **data_args)
        elif path.suffix in _BUILDERS or (not path.exists() and name.startswith((".", "/", "~"))):
            raise FileNotFoundError("no such file or folder")
        else:
            target = str(path) if path.exists() else name
            data = datasets.load_dataset(target, split=split, **data_args)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"Dataset {name} not found: {error}") from error
    except (ValueError, DatasetsError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"Dataset {name} could not be read: {reason}") from error
    except StopIteration:
        data = Dataset.from_dict({})  # what the json builder makes of an empty file
    if not isinstance(data, Dataset):
        raise ValueError(
            f"Dataset {name} is a {type(data).__name__}, whose rows have no numbers. Do not stream "
            'it; a part of a split is loaded with `split="train[:10000]"`.'
        )
    if not len(data):
        raise ValueError(f"Dataset {name} is empty.")
    return data


def _select_split(data: Dataset | datasets.DatasetDict, split: str) -> Dataset:
    """The part of a saved dataset that `split` names, slices such as "train[:10%]" included."""
    if isinstance(data, Dataset):
        data = datasets.DatasetDict({split.partition("[")[0]: data})
    lengths = {name: len(part) for name, part in data.items()}
    parts = [
        data[part.splitname].select(range(part.from_, part.to))
        for part in datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    ]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


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


def _one_column(data: Dataset, column: str) -> Dataset:
    """That column alone, as `text` if it holds strings and as `messages` otherwise."""
    feature = data.features[column]
    if isinstance(feature, Value) and feature.dtype not in _STRINGS:
        raise ValueError(f"Column {column!r} holds {feature.dtype}, not text.")
    name = "text" if isinstance(feature, Value) else "messages"
    data = data.select_columns(column)
    return data if column == name else data.rename_column(column, name)


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


def _normalize(data: Dataset) -> Dataset:
    """Texts as plain strings, conversations as role and content."""
    if "text" in data.column_names:
        is_plain = data.features["text"] == Value("string")
        return data if is_plain else data.cast_column("text", Value("string"))
    return data.map(
        _normalize_batch,
        batched=True,
        features=Features({**_CHAT_FEATURES, "dataset": data.features["dataset"]}),
        desc="Reading conversations",
    )


def _normalize_batch(batch: dict[str, list]) -> dict[str, list]:
    messages = [normalize_messages(messages or []) for messages in batch["messages"]]
    return {"messages": messages, "dataset": batch["dataset"]}


def _has_content(data: Dataset) -> bool:
    """Whether any text is not blank; ends at the first, so usually at once."""
    if "text" in data.column_names:
        return any(text and not text.isspace() for text in data["text"])
    return any(plain_text(messages).strip() for messages in data["messages"])
