"""Activations as floating point numbers, and nothing beside them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .dtype import Encoded, StoreDtype


def float_dtype(name: str, dtype: torch.dtype) -> StoreDtype:
    """Activations in a dtype of torch."""

    def encode(x: Tensor) -> Encoded:
        values = x.to(dtype).contiguous()
        if values.numel() and not all(extreme.isfinite() for extreme in values.aminmax()):
            raise OverflowError(f"the largest is {x.abs().max():g}")
        return Encoded({"activations": values.cpu()}, {})

    def decode(rows: Mapping[str, Tensor], tables: Mapping[str, Tensor], table: Tensor) -> Tensor:
        return rows["activations"]

    return StoreDtype(name, encode, decode, row_bytes=lambda width: width * dtype.itemsize)


BFLOAT16 = float_dtype("bfloat16", torch.bfloat16)
FLOAT16 = float_dtype("float16", torch.float16)
FLOAT32 = float_dtype("float32", torch.float32)
