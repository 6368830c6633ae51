"""The windows of a store's parts: their files, their numbers, their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets, load_from_disk

from ..files import no_address
from .shards import damaged


def windows_name(part: int) -> str:
    return f"windows_{part:03d}"


def load_part_windows(path: Path, part: int) -> Dataset:
    """The windows of one part; raises ValueError if they cannot be read."""
    folder = path / windows_name(part)
    try:
        windows = load_from_disk(str(no_address(folder)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, str(error)) from error
    assert isinstance(windows, Dataset)
    return windows


def join_windows(parts: Sequence[Dataset]) -> Dataset:
    """The windows of several parts, one after the other, datasets numbered over all of them."""
    if len(parts) == 1:
        return parts[0]
    labels: list[str] = []
    for windows in parts:
        for name in getattr(windows.features.get("dataset"), "names", ()):
            if name not in labels:
                labels.append(name)
    if not labels:
        return concatenate_datasets(list(parts))
    relabelled = []
    for windows in parts:
        names = np.array([labels.index(name) for name in windows.features["dataset"].names])
        numbers = names[np.asarray(windows["dataset"], dtype=np.int64)]
        feature = ClassLabel(names=labels)
        windows = windows.remove_columns("dataset").add_column("dataset", numbers, feature=feature)
        relabelled.append(windows)
    return concatenate_datasets(relabelled)


def shift_texts(windows: Dataset, by: int) -> Dataset:
    """The windows with `by` added to the number of their texts."""
    if not by:
        return windows
    columns = windows.column_names
    texts = np.asarray(windows["text_id"], dtype=np.int64) + by
    feature = windows.features["text_id"]
    windows = windows.remove_columns("text_id").add_column("text_id", texts, feature=feature)
    return windows.select_columns(columns)


def hash_windows(windows: Dataset) -> str:
    """Checksum of a windows dataset's contents, whatever its chunks, cache file or indices are."""
    digest = hashlib.sha256()
    for name, values in _columns(windows):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _columns(windows: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    for batch in windows.with_format("arrow").iter(4096):
        table: Any = batch
        for name in sorted(table.column_names):
            column = table.column(name).combine_chunks()
            if hasattr(column, "flatten") and hasattr(column, "value_lengths"):
                yield f"{name} lengths", column.value_lengths().to_numpy(zero_copy_only=False)
                column = column.flatten()
            yield name, column.to_numpy(zero_copy_only=False)


def hash_pairs(windows: Dataset) -> str:
    """Checksum of the tokens and pairs of windows, and of which texts they are from."""
    names = [n for n in windows.column_names if n.startswith(("input_ids_", "pairs_"))]
    return hash_windows(windows.select_columns(sorted(["text_id", *names])))
