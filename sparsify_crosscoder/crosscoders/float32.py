"""Buffers that stay in float32 in a module of any dtype."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


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
