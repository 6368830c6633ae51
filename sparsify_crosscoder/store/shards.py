"""One file of activation pairs: written whole, mapped into memory, checked as it is read.

A shard of n pairs is a safetensors file with, for each source s of width d_s,

    activations_{s}   [n, d_s]   bfloat16, float16, float32 or int8
    scale_{s}         [n]        float32, of int8 alone
    center_{s}        [d_s]      float32, of int8 alone: each dimension's mean in the shard
    spread_{s}        [d_s]      float32, of int8 alone: its standard deviation

and `checksums` [ceil(n / 64)], int64: XXH3 of every 64 pairs. An int8 row q of scale c stands for
`center + spread * c * q`: scaled by dimension first, since some dimensions of a language model are
hundreds of times larger than the others, which would leave those nothing of eight bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path, hash_file
from .stored_rows import StoredRows

DTYPES = ("bfloat16", "float16", "float32", "int8")
CHECKED_PAIRS = 64
_QUANTIZED_AT_ONCE = 4096


def bytes_per_pair(widths: Sequence[int], dtype: str) -> float:
    """Bytes that a pair takes in a shard, its share of the checksums included."""
    itemsize = getattr(torch, dtype).itemsize
    scales = 4 * len(widths) if dtype == "int8" else 0
    return sum(widths) * itemsize + scales + 8 / CHECKED_PAIRS


class Shard:
    """A shard mapped into memory; `checked` says which of its blocks were found whole."""

    def __init__(self, file: Path, checked: np.ndarray):
        self.file = file
        self.checked = checked
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                # On the CPU these are views of the mapped file; nothing is read yet.
                self._tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's own, of a lost file
            raise damaged(file, str(error)) from error
        self._sources = sum(name.startswith("activations_") for name in self._tensors)
        if not self._sources or len(self._tensors.get("checksums", ())) != len(checked):
            raise damaged(file, "its tensors are not those of a shard of this size")
        self._seed = _table_checksum(self._of("center") + self._of("spread"))

    def _of(self, name: str) -> list[Tensor]:
        found = (self._tensors.get(f"{name}_{s}") for s in range(self._sources))
        return [tensor for tensor in found if tensor is not None]

    def read(self, rows: Tensor) -> StoredRows:
        """The rows numbered `rows` [n] in the shard, in memory of their own.

        Raises ValueError if a block that holds one of them does not have its checksum.
        """
        for block in (rows // CHECKED_PAIRS).unique().tolist():
            if not self.checked[block]:
                self._check(block)
        values, scales = self._of("activations"), self._of("scale")
        first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
        if last - first + 1 == len(rows) and bool((rows.diff() == 1).all()):
            values = [x[first : last + 1].clone() for x in values]
            scales = [x[first : last + 1].clone() for x in scales]
        else:
            values, scales = [x[rows] for x in values], [x[rows] for x in scales]
        tables = [[x.clone()[None] for x in self._of(name)] for name in ("center", "spread")]
        return StoredRows(values, scales, torch.zeros_like(rows), *tables)

    def _check(self, block: int) -> None:
        part = slice(block * CHECKED_PAIRS, (block + 1) * CHECKED_PAIRS)
        tensors = [x[part] for x in self._of("activations") + self._of("scale")]
        if _checksum(tensors, self._seed) != int(self._tensors["checksums"][block]):
            raise damaged(self.file, f"pairs from {part.start} on do not match their checksum")
        self.checked[block] = True


def num_checked_blocks(rows: int) -> int:
    """How many checksums a shard of so many rows has."""
    return -(-rows // CHECKED_PAIRS)


def write_shard(file: Path, activations: Sequence[Tensor], dtype: str) -> dict[str, Any]:
    """Write the pairs `activations`, [n, d_s] per source, and say what was written.

    The result is what the manifest says of a shard: `file`, `rows`, `bytes`, `sha256`. Raises
    ValueError for activations that the dtype cannot hold, OSError if the disk is full; the file is
    then not there.
    """
    stored: dict[str, list[Tensor]] = {"activations": [], "scale": [], "center": [], "spread": []}
    for s, x in enumerate(activations):
        if dtype == "int8":
            for name, tensor in _quantize(x).items():
                stored[name].append(tensor.cpu())
            continue
        values = x.to(getattr(torch, dtype)).contiguous()
        if values.numel() and not all(extreme.isfinite() for extreme in values.aminmax()):
            raise ValueError(
                f"Activations of source {s} are too large for {dtype}; store them as bfloat16, "
                "float32 or int8."
            )
        stored["activations"].append(values.cpu())
    seed = _table_checksum(stored["center"] + stored["spread"])
    checksums = [
        _checksum([x[i : i + CHECKED_PAIRS] for x in stored["activations"] + stored["scale"]], seed)
        for i in range(0, len(activations[0]), CHECKED_PAIRS)
    ]
    tensors = {f"{name}_{s}": x for name, xs in stored.items() for s, x in enumerate(xs)}
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


def _quantize(x: Tensor) -> dict[str, Tensor]:
    spread, center = torch.std_mean(x.float(), dim=0, correction=0)
    spread[spread == 0] = 1
    values = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty(len(x), dtype=torch.float32)
    for i in range(0, len(x), _QUANTIZED_AT_ONCE):
        part = slice(i, i + _QUANTIZED_AT_ONCE)
        z = (x[part].float() - center) / spread
        scale[part] = z.abs().amax(1) / 127
        scale[part][scale[part] == 0] = 1
        values[part] = (z / scale[part][:, None]).round().to(torch.int8)
    return {"activations": values, "scale": scale, "center": center, "spread": spread}


def _checksum(tensors: Sequence[Tensor], seed: int) -> int:
    digest = xxhash.xxh3_64(seed=seed)
    for x in tensors:
        digest.update(x.view(torch.uint8).numpy().data)
    return digest.intdigest() - 2**63


def _table_checksum(tables: Sequence[Tensor]) -> int:
    return _checksum(tables, 0) + 2**63
