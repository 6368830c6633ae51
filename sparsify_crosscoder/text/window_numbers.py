"""Columns of numbers of a table of windows."""

from typing import Any

import numpy as np
from datasets import Dataset


def window_numbers(windows: Dataset, column: str) -> np.ndarray:
    """A column of numbers, int64 [windows], read as a whole, not row by row."""
    table: Any = windows.with_format("arrow", columns=[column])[:]
    return table.column(column).to_numpy().astype(np.int64)
