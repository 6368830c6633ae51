"""What a dtype of a store is: how activations become tensors of a file, and tensors activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Encoded(NamedTuple):
    """Activations of one source as they are stored, on the CPU."""

    rows: dict[str, Tensor]
    """By name [n, ...]: what each row has of its own."""

    tables: dict[str, Tensor]
    """By name: what all rows of a shard share."""


@dataclass(frozen=True)
class StoreDtype:
    """One way to keep activations in a store."""

    name: str
    """What `--dtype` and a store's manifest call it."""

    encode: Callable[[Tensor], Encoded]
    """Stores [n, d] activations of one source, of any dtype and device. Raises OverflowError for
    those that are too large for it."""

    decode: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor], Tensor]
    """Gives activations [n, d] for rows by name [n, ...], tables by name [tables, ...], since rows
    may be of several shards, and the number of the table that each row needs [n]."""

    row_bytes: Callable[[int], int]
    """Bytes of one source's row, given its width."""

    rows: tuple[str, ...] = ("activations",)
    """Names in `Encoded.rows`."""

    tables: tuple[str, ...] = ()
    """Names in `Encoded.tables`."""
