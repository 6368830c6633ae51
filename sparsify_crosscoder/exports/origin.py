"""Where a half's activations come from, as other libraries name it."""

from __future__ import annotations

import re
from typing import NamedTuple

# Relative to a base model: layers.16, h.3, language_model.layers.9, decoder.layers.2.
_LAYER = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)")


class Origin(NamedTuple):
    """The model and the place in it."""

    model: str | None
    """Name or folder; None for a crosscoder that does not say."""

    revision: str | None
    hookpoint: str | None
    """As sparsify spells it: a module of the base model, whose output is read."""

    ctx_len: int | None
    """Tokens of the run's windows."""

    @property
    def layer(self) -> int | None:
        """Number of the layer whose output is read; None where it is that of another module."""
        found = _LAYER.fullmatch(self.hookpoint or "")
        return int(found[1]) if found else None
