"""Pairs as they are stored, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from .dtypes import StoreDtype


@dataclass(frozen=True)
class StoredRows:
    """Pairs as they are stored."""

    dtype: StoreDtype

    rows: list[dict[str, Tensor]]
    """Per source and by name [n, ...]."""

    table: Tensor
    """[n] which of the tables below each row needs."""

    tables: list[dict[str, Tensor]]
    """Per source and by name [tables, ...]: what all rows of a shard share."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_tables(self) -> int:
        return max((len(table) for table in self.tables[0].values()), default=0)

    def at(self, places: Tensor) -> StoredRows:
        """The rows at `places` [n]."""
        rows = [{name: x[places] for name, x in of_source.items()} for of_source in self.rows]
        return replace(self, rows=rows, table=self.table[places])

    def decode(self) -> list[Tensor]:
        """Activations [n, d_s] per source."""
        return [
            self.dtype.decode(rows, tables, self.table)
            for rows, tables in zip(self.rows, self.tables, strict=True)
        ]


def join_rows(parts: Iterable[StoredRows], num_rows: int) -> StoredRows:
    """The rows of one part or several, one after the other, `num_rows` in all.

    Parts are taken one by one, so those of a generator need not exist at the same time.
    """
    parts = iter(parts)
    first = next(parts)
    joined = replace(
        first,
        rows=[
            {name: x.new_empty(num_rows, *x.shape[1:]) for name, x in of_source.items()}
            for of_source in first.rows
        ],
        table=torch.empty(num_rows, dtype=torch.int64),
    )
    tables: list[list[dict[str, Tensor]]] = []
    done = num_tables = 0
    for part in chain([first], parts):
        here = slice(done, done + len(part))
        for out, of_source in zip(joined.rows, part.rows, strict=True):
            for name, x in of_source.items():
                out[name][here] = x
        joined.table[here] = part.table + num_tables
        tables.append(part.tables)
        num_tables += part.num_tables
        done += len(part)
    return replace(
        joined,
        tables=[
            {name: torch.cat([table[name] for table in of_source]) for name in of_source[0]}
            for of_source in zip(*tables, strict=True)
        ],
    )
