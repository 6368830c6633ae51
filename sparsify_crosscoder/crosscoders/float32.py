"""What stays in float32: buffers in a module of any dtype, and products under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Full precision inside, whatever is outside."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


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
