"""Pairs as they are stored, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredRows:
    """Pairs as they are stored."""

    values: list[Tensor]
    """[n, d_s] per source."""

    scales: list[Tensor]
    """[n] per source, of int8 alone."""

    table: Tensor
    """[n] which of the tables below each row needs."""

    centers: list[Tensor]
    """[tables, d_s] per source, of int8 alone."""

    spreads: list[Tensor]

    def __len__(self) -> int:
        return len(self.table)

    def at(self, places: Tensor) -> StoredRows:
        """The rows at `places` [n]."""
        return replace(
            self,
            values=[x[places] for x in self.values],
            scales=[x[places] for x in self.scales],
            table=self.table[places],
        )

    def decode(self) -> list[Tensor]:
        """Activations [n, d_s] per source: as stored, or float32 if that is int8."""
        if not self.scales:
            return self.values
        decoded = []
        for s, (values, scales) in enumerate(zip(self.values, self.scales, strict=True)):
            x = values.float().mul_(scales[:, None])
            if len(self.centers[s]) == 1:
                decoded.append(x.mul_(self.spreads[s]).add_(self.centers[s]))
            else:
                x *= self.spreads[s][self.table]
                decoded.append(x.add_(self.centers[s][self.table]))
        return decoded


def join_rows(parts: Iterable[StoredRows], num_rows: int) -> StoredRows:
    """The rows of several parts, one after the other, `num_rows` in all.

    Parts are taken one by one, so those of a generator need not exist at the same time.
    """
    values: list[Tensor] = []
    scales: list[Tensor] = []
    centers: list[list[Tensor]] = []
    spreads: list[list[Tensor]] = []
    table = torch.empty(num_rows, dtype=torch.int64)
    done = 0
    for part in parts:
        if not values:
            values = [x.new_empty(num_rows, *x.shape[1:]) for x in part.values]
            scales = [x.new_empty(num_rows) for x in part.scales]
        here = slice(done, done + len(part))
        for out, x in zip([*values, *scales], [*part.values, *part.scales], strict=True):
            out[here] = x
        table[here] = part.table + sum(len(tables[0]) for tables in centers)
        if part.scales:
            centers.append(part.centers)
            spreads.append(part.spreads)
        done += len(part)
    tables = [[torch.cat(xs) for xs in zip(*parts, strict=True)] for parts in (centers, spreads)]
    return StoredRows(values, scales, table, *tables)
