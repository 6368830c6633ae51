"""Where the entries of a sparse matrix lie, as the kernels are told."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from torch import Tensor


class Places(Protocol):
    """E entries of an `[N, M]` matrix, sorted by row. What it costs to know is found when asked."""

    @property
    def rows(self) -> Tensor:
        """Row of each entry, `[E]`."""
        ...

    @property
    def indices(self) -> Tensor:
        """Column of each entry, `[E]`."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        ...

    @cached_property
    def offsets(self) -> Tensor:
        """Where each row's entries begin, `[N]`."""
        ...

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """The stable order by column `[E]`, and where each column begins in it `[M]`."""
        ...


def column_segments(
    places: Places, weights: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `segment_sums` takes to add up the entries of each column: rows, starts, weights.

    Rows beyond `num_rows` begin again with the first one.
    """
    order, starts = places.by_latent
    rows = places.rows.index_select(0, order)
    if num_rows < places.shape[0]:
        rows %= num_rows
    return rows, starts, weights.index_select(0, order)
