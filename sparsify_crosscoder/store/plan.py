"""How a part of a store is divided into shards, and what room they take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from ..text.window_numbers import window_numbers
from .manifest import column_names
from .shard_notes import note_of, shard_name
from .shards import bytes_per_pair

_SHARD_BYTES, _SHARD_PAIRS = 2**28, 2**16


class Plan(NamedTuple):
    """Which windows of a part go into which shard."""

    bounds: list[tuple[int, int]]
    """Windows [start, stop) of each shard."""

    rows: list[int]
    """Pairs of each shard."""

    files: list[Path]


def plan_part(path: Path, part: dict[str, Any], windows: Dataset) -> Plan:
    """How the windows of a part of the store at `path` are divided."""
    num_pairs = window_numbers(windows, "num_pairs")
    text_ids = window_numbers(windows, "text_id")
    bounds = shard_bounds(num_pairs, text_ids, part["settings"]["shard_pairs"])
    return Plan(
        bounds,
        [int(num_pairs[slice(*bound)].sum()) for bound in bounds],
        [path / shard_name(part["first_shard"] + i) for i in range(len(bounds))],
    )


def default_shard_pairs(widths: Sequence[int], dtype: str) -> int:
    """Pairs of a shard: as many as make 256 MB, at most 65,536."""
    return max(min(_SHARD_PAIRS, int(_SHARD_BYTES / bytes_per_pair(widths, dtype))), 1)


def shard_bounds(
    num_pairs: np.ndarray, text_ids: np.ndarray, shard_pairs: int
) -> list[tuple[int, int]]:
    """Windows [start, stop) of each shard: whole texts, until they have `shard_pairs` pairs.

    A text is only cut where it has that many pairs itself.
    """
    ends = np.cumsum(num_pairs)
    closes_text = np.append(text_ids[1:] != text_ids[:-1], True)
    bounds, start, before, text_before = [], 0, 0, 0
    for window in range(len(num_pairs)):
        enough = ends[window] - before >= shard_pairs
        if enough and (closes_text[window] or ends[window] - text_before >= shard_pairs):
            bounds.append((start, window + 1))
            start, before = window + 1, int(ends[window])
            text_before = before
        if closes_text[window]:
            text_before = int(ends[window])
    if before < ends[-1]:
        bounds.append((start, len(num_pairs)))
    return bounds


def check_room(path: Path, manifest: dict[str, Any], plan: Plan) -> None:
    """Raise ValueError where the disk has no room for what is missing of a part."""
    widths = [source["width"] for source in manifest["sources"]]
    first = manifest["parts"][0]
    bytes_each = bytes_per_pair(widths, first["settings"]["dtype"], len(column_names(first)))
    missing = sum(
        rows for rows, file in zip(plan.rows, plan.files, strict=True) if not note_of(file).exists()
    )
    needed, free = missing * bytes_each, shutil.disk_usage(path).free
    if needed > free:
        raise ValueError(
            f"The activations still missing in '{path}' take {needed / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free there. Use fewer --pairs, --dtype int8, or another disk."
        )
