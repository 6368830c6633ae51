"""The windows of a store's parts: their files, their numbers, their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, concatenate_datasets, load_from_disk

from ..files import no_address
from ..text.roles import NO_WRITER, ROLES, WRITERS, Role
from ..text.window_numbers import window_numbers
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


def join_windows(parts: Sequence[Dataset], noted: Sequence[bool]) -> Dataset:
    """The windows of several parts, one after the other, datasets numbered over all of them.

    `noted` says of which parts it is known that they would have roles where there are any.
    """
    if len(parts) == 1:
        return parts[0]
    if any(ROLES in windows.column_names for windows in parts):
        parts = [
            with_notes(part, Role.PLAIN if known else Role.UNKNOWN)
            for part, known in zip(parts, noted, strict=True)
        ]
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
        numbers = names[window_numbers(windows, "dataset")]
        feature = ClassLabel(names=labels)
        windows = windows.remove_columns("dataset").add_column("dataset", numbers, feature=feature)
        relabelled.append(windows)
    return concatenate_datasets(relabelled)


def with_notes(windows: Dataset, role: Role) -> Dataset:
    """The windows with a role and a writer of every pair, `role` and none where they have none."""
    if ROLES in windows.column_names:
        return windows
    table: Any = windows.select_columns("ends").with_format("arrow")[:]
    ends = table["ends"].combine_chunks()
    for name, value in ((ROLES, role), (WRITERS, NO_WRITER)):
        values = pa.array(np.full(len(ends.flatten()), value, dtype=np.int8))
        bounds = np.append(0, np.cumsum(ends.value_lengths()))
        column: Any = pa.ListArray.from_arrays(pa.array(bounds, type=pa.int32()), values)
        windows = windows.add_column(name, column)
    return windows


def shift_texts(windows: Dataset, by: int) -> Dataset:
    """The windows with `by` added to the number of their texts."""
    if not by:
        return windows
    columns = windows.column_names
    texts = window_numbers(windows, "text_id") + by
    feature = windows.features["text_id"]
    windows = windows.remove_columns("text_id").add_column("text_id", texts, feature=feature)
    return windows.select_columns(columns)


def hash_windows(windows: Dataset) -> str:
    """Checksum of a windows dataset's contents, whatever its chunks, cache file or indices are.

    What `hash_notes` covers is left out: windows of earlier versions do not have it.
    """
    return _hash(windows, [name for name in windows.column_names if name not in (ROLES, WRITERS)])


def hash_notes(windows: Dataset) -> str:
    """Checksum of the roles and writers of windows, if they have any."""
    return _hash(windows, [name for name in (ROLES, WRITERS) if name in windows.column_names])


def _hash(windows: Dataset, columns: list[str]) -> str:
    digest = hashlib.sha256()
    for name, values in _columns(windows.select_columns(columns)) if columns else ():
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
