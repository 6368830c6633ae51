"""Activations in eight bits, with a scale for each row and for each dimension.

A row q of scale c stands for `center + spread * c * q`: scaled by dimension first, since some
dimensions of a language model are hundreds of times larger than the others, which would leave those
nothing of eight bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .dtype import Encoded, StoreDtype

_QUANTIZED_AT_ONCE = 4096


def encode(x: Tensor) -> Encoded:
    """Whole numbers from -127 to 127, each row's scale, and each dimension's mean and spread."""
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
    return Encoded(
        {"activations": values.cpu(), "scale": scale.cpu()},
        {"center": center.cpu(), "spread": spread.cpu()},
    )


def decode(rows: Mapping[str, Tensor], tables: Mapping[str, Tensor], table: Tensor) -> Tensor:
    """Activations in float32."""
    center, spread = tables["center"], tables["spread"]
    x = rows["activations"].float().mul_(rows["scale"][:, None])
    if len(center) == 1:
        return x.mul_(spread).add_(center)
    return x.mul_(spread[table]).add_(center[table])


INT8 = StoreDtype(
    "int8",
    encode,
    decode,
    row_bytes=lambda width: width + 4,
    rows=("activations", "scale"),
    tables=("center", "spread"),
)
