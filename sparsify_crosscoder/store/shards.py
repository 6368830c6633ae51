"""One file of activation pairs: written whole, mapped into memory, checked as it is read.

A shard of n pairs is a safetensors file with, for each source s of width d_s, what the store's
dtype makes of its activations (`dtypes`):

    activations_{s}   [n, d_s]   bfloat16, float16, float32 or int8
    scale_{s}         [n]        float32, of int8 alone
    center_{s}        [d_s]      float32, of int8 alone: each dimension's mean in the shard
    spread_{s}        [d_s]      float32, of int8 alone: its standard deviation

of a store with columns (`store`) `column_{name}` [n], float32, for each of them, and `checksums`
[ceil(n / 64)], int64: XXH3 of every 64 pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path
from ..hashing import hash_file
from .dtypes import StoreDtype, get_dtype
from .stored_rows import StoredRows

CHECKED_PAIRS = 64
_COLUMN = "column_"


def bytes_per_pair(widths: Sequence[int], dtype: str, columns: int = 0) -> float:
    """Bytes that a pair takes in a shard, its columns and share of the checksums included."""
    return sum(map(get_dtype(dtype).row_bytes, widths)) + 4 * columns + 8 / CHECKED_PAIRS


class Shard:
    """A shard mapped into memory; `checked` says which of its blocks were found whole."""

    def __init__(self, file: Path, dtype: StoreDtype, checked: np.ndarray):
        self.file = file
        self.dtype = dtype
        self.checked = checked
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                # On the CPU these are views of the mapped file; nothing is read yet.
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's own, of a lost file
            raise damaged(file, str(error)) from error
        sources = range(sum(name.startswith(f"{dtype.rows[0]}_") for name in tensors))
        try:
            self._checksums = tensors["checksums"]
            self._rows = [{name: tensors[f"{name}_{s}"] for name in dtype.rows} for s in sources]
            tables = [{name: tensors[f"{name}_{s}"] for name in dtype.tables} for s in sources]
        except KeyError as error:
            raise damaged(file, f"it has no {error}") from error
        if not sources or len(self._checksums) != len(checked):
            raise damaged(file, "its tensors are not those of a shard of this size")
        self._tables = tables
        names = sorted(name for name in tensors if name.startswith(_COLUMN))
        self._columns = {name.removeprefix(_COLUMN): tensors[name] for name in names}
        self._seed = _table_checksum(_by_name(tables, dtype.tables))

    def read(self, rows: Tensor) -> StoredRows:
        """The rows numbered `rows` [n] in the shard, in memory of their own.

        Raises ValueError if a block that holds one of them does not have its checksum.
        """
        self._check_blocks_of(rows)
        first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
        together = last - first + 1 == len(rows) and bool((rows.diff() == 1).all())

        def taken(x: Tensor) -> Tensor:
            return x[first : last + 1].clone() if together else x[rows]

        return StoredRows(
            self.dtype,
            [{name: taken(x) for name, x in of_source.items()} for of_source in self._rows],
            torch.zeros_like(rows),
            [{name: x.clone()[None] for name, x in of.items()} for of in self._tables],
        )

    def read_column(self, name: str, rows: Tensor) -> Tensor:
        """A column [n] of the same rows; raises ValueError as `read`, and where it is not there."""
        self._check_blocks_of(rows)
        if name not in self._columns:
            raise damaged(self.file, f"it has no column {name!r}")
        return self._columns[name][rows]

    def _check_blocks_of(self, rows: Tensor) -> None:
        for block in (rows // CHECKED_PAIRS).unique().tolist():
            if not self.checked[block]:
                self._check(block)

    def _check(self, block: int) -> None:
        part = slice(block * CHECKED_PAIRS, (block + 1) * CHECKED_PAIRS)
        own = [*_by_name(self._rows, self.dtype.rows), *self._columns.values()]
        tensors = [x[part] for x in own]
        if _checksum(tensors, self._seed) != int(self._checksums[block]):
            raise damaged(self.file, f"pairs from {part.start} on do not match their checksum")
        self.checked[block] = True


def num_checked_blocks(rows: int) -> int:
    """How many checksums a shard of so many rows has."""
    return -(-rows // CHECKED_PAIRS)


def write_shard(
    file: Path,
    activations: Sequence[Tensor],
    dtype: str,
    columns: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write the pairs `activations`, [n, d_s] per source, with `columns` [n] by name, and say what
    was written.

    The result is what the manifest says of a shard: `file`, `rows`, `bytes`, `sha256`. Raises
    ValueError for activations that the dtype cannot hold, OSError if the disk is full; the file is
    then not there.
    """
    kind = get_dtype(dtype)
    rows, tables = [], []
    for s, x in enumerate(activations):
        try:
            encoded = kind.encode(x)
        except OverflowError as error:
            raise ValueError(
                f"Activations of source {s} are too large for {dtype}; store them as bfloat16, "
                "float32 or int8."
            ) from error
        rows.append(encoded.rows)
        tables.append(encoded.tables)
    seed = _table_checksum(_by_name(tables, kind.tables))
    named = {f"{_COLUMN}{name}": values.float() for name, values in sorted((columns or {}).items())}
    own = [*_by_name(rows, kind.rows), *named.values()]
    checksums = [
        _checksum([x[i : i + CHECKED_PAIRS] for x in own], seed)
        for i in range(0, len(activations[0]), CHECKED_PAIRS)
    ]
    tensors = {f"{name}_{s}": of[name] for name in kind.rows for s, of in enumerate(rows)}
    tensors |= {f"{name}_{s}": of[name] for name in kind.tables for s, of in enumerate(tables)}
    tensors |= named
    tensors["checksums"] = torch.tensor(checksums)
    with atomic_path(file) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            raise OSError(f"'{file}' could not be written: {error}") from error
        return {
            "file": file.name,
            "rows": len(activations[0]),
            "bytes": temporary.stat().st_size,
            "sha256": hash_file(temporary),
        }


def damaged(file: Path, reason: str) -> ValueError:
    """The error that names a damaged part of a store and says what to do."""
    return ValueError(
        f"'{file}' is damaged: {reason}. Delete it and run the same harvest again, which makes it "
        "anew, or restore it from a copy."
    )


def _by_name(of_sources: Sequence[dict[str, Tensor]], names: Sequence[str]) -> list[Tensor]:
    """The tensors of all sources in the order of their names: what checksums are taken over."""
    return [of_source[name] for name in names for of_source in of_sources]


def _checksum(tensors: Sequence[Tensor], seed: int) -> int:
    digest = xxhash.xxh3_64(seed=seed)
    for x in tensors:
        digest.update(x.view(torch.uint8).numpy().data)
    return digest.intdigest() - 2**63


def _table_checksum(tables: Sequence[Tensor]) -> int:
    return _checksum(tables, 0) + 2**63
