"""Plain sparsify, which delphi reads too: `sae.safetensors` and `cfg.json`."""

from __future__ import annotations

from pathlib import Path

from ..crosscoders import Crosscoder
from .origin import Origin


def write(crosscoder: Crosscoder, source: int, origin: Origin, folder: Path) -> None:
    """Write a `SparseCoder` of k latents per token, whatever thresholds there are."""
    del origin  # the format has no place for it
    crosscoder.export_sae(source, folder)
