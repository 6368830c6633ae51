"""Where pairs come from: which text, where in it, who said it, and which model wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..text.roles import NO_WRITER, ROLES, WRITERS, Role
from ..text.window_numbers import window_numbers


class PairNotes(NamedTuple):
    """Where each of N pairs comes from, int64 [N] each."""

    text_id: Tensor
    """Which text."""

    window: Tensor
    """Row of the windows that the pairs are from."""

    position: Tensor
    """Number of the pair in its window."""

    end: Tensor
    """The character of the text (of `plain_text` for chat) behind which the pair ends."""

    role: Tensor
    """`text.roles.Role`: who said it; `Role.UNKNOWN` in stores of earlier versions."""

    writer: Tensor
    """The source that wrote it, `NO_WRITER` for what came with the data set."""

    @property
    def known(self) -> bool:
        """Whether roles and writers are known."""
        return bool((self.role != Role.UNKNOWN).all())


class WindowNotes:
    """The notes of windows, looked up by window and position.

    `plain` is the role of pairs of windows that have no roles: those of plain texts, or of a
    version that did not note any.
    """

    def __init__(self, windows: Dataset, plain: Role = Role.PLAIN):
        self._windows = windows
        self._plain = plain

    def at(self, window: Tensor, position: Tensor) -> PairNotes:
        """The notes of the pairs at `position` [N] of `window` [N]."""
        place = torch.from_numpy(self._first)[window] + position
        return PairNotes(
            torch.from_numpy(self._text_ids)[window],
            window,
            position,
            torch.from_numpy(self._flat("ends"))[place].long(),
            self._noted(ROLES, self._plain, place),
            self._noted(WRITERS, NO_WRITER, place),
        )

    def _noted(self, column: str, without: int, place: Tensor) -> Tensor:
        if column not in self._windows.column_names:
            return torch.full_like(place, without)
        return torch.from_numpy(self._flat(column))[place].long()

    @cached_property
    def _first(self) -> np.ndarray:
        """Number of each window's first pair [windows]."""
        counts = window_numbers(self._windows, "num_pairs")
        return np.cumsum(counts) - counts

    @cached_property
    def _text_ids(self) -> np.ndarray:
        return window_numbers(self._windows, "text_id")

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    def _flat(self, column: str) -> np.ndarray:
        """A column's values of all pairs, one window behind the other."""
        if column not in self._columns:
            table: Any = self._windows.select_columns(column).with_format("arrow")[:]
            self._columns[column] = table[column].combine_chunks().flatten().to_numpy().copy()
        return self._columns[column]


def join_notes(parts: Iterable[PairNotes]) -> PairNotes:
    """The notes of several stretches of pairs, one after the other."""
    return PairNotes(*(torch.cat(column) for column in zip(*parts, strict=True)))
