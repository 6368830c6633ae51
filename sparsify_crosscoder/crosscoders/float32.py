"""What stays in float32: buffers in a module of any dtype, and matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import torch
from torch import nn


@contextmanager
def full_precision(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Full precision inside, whatever is outside: no autocast, and TF32 only where it is asked.

    TF32 keeps 10 bits of float32's 23 in the factors of a matrix product, where a GPU has it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    autocasts = torch.is_autocast_enabled(device.type)
    try:
        with torch.autocast(device.type, enabled=False) if autocasts else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class KeepsFloat32(nn.Module):
    """A module whose buffers named in `float32_buffers` move to devices, but keep their dtype."""

    float32_buffers: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn, recurse=True):
        kept = {name: self._buffers[name] for name in self.float32_buffers}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self
