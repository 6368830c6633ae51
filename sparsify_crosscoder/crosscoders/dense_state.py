"""A crosscoder's state dict: dense matrices, in sparsify's names, in place of the blocks' weights.

`encoder.weight` [M, d_in], `encoder.bias` [M], `W_dec` [M, d_in], `b_dec` [d_in], `mean` [d_in],
`factors` [S], `median_norms` [S] and `threshold` [G], whatever the architecture: weights that do
not exist are zeros, tied ones are there twice. What an architecture registers beside them keeps
its own name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

THRESHOLD = "threshold", "selector.threshold"


def blocks_to_dense(module: Any, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """State dict hook: one dense matrix in place of the blocks' weights."""
    for b in range(len(module.partition.blocks)):
        del state[f"{prefix}encoder.weights.{b}"], state[f"{prefix}decoders.{b}"]
    name, inner_name = THRESHOLD
    state[f"{prefix}{name}"] = state.pop(f"{prefix}{inner_name}")
    sources = range(len(module.d_sources))
    with torch.no_grad():
        state[f"{prefix}encoder.weight"] = torch.cat([module.block_weight(s) for s in sources], 1)
        state[f"{prefix}W_dec"] = module.W_dec


def dense_to_blocks(
    module: Any, state: dict[str, Tensor], prefix: str, _metadata, _strict, missing, _extra, errors
) -> None:
    """Inverse of `blocks_to_dense`; refuses weights where the architecture has none."""
    # Crosscoders of version 0.1.0 do not know their median norms.
    unknown = torch.zeros_like(module.median_norms)
    state.setdefault(f"{prefix}median_norms", unknown)
    name, inner_name = THRESHOLD
    if f"{prefix}{name}" in state:
        state[f"{prefix}{inner_name}"] = state.pop(f"{prefix}{name}")
    for dense_name, name, is_decoder in (
        ("encoder.weight", "encoder.weights", False),
        ("W_dec", "decoders", True),
    ):
        dense = state.pop(f"{prefix}{dense_name}", None)
        if dense is None:
            continue
        for b, block in enumerate(module.partition.blocks):
            rows = dense[block.start : block.stop]
            columns = [module.columns[s] for s in block.sources]
            parts = [rows[:, c] for c in columns]
            if block.tied and is_decoder:
                if not all(torch.equal(parts[0], part) for part in parts[1:]):
                    errors.append(f"{dense_name}: the tied block '{block.name}' is not tied")
                parts = parts[:1]
            outside = [rows[:, c] for s, c in enumerate(module.columns) if s not in block.sources]
            if any(bool(part.any()) for part in outside):
                errors.append(f"{dense_name}: block '{block.name}' has weights to other sources")
            state[f"{prefix}{name}.{b}"] = torch.cat(parts, 1)
