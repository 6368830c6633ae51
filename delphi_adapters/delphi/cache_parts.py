"""One part of a latent cache that is not finished: a file of a code's entries, by split."""

from __future__ import annotations

from typing import Any

import numpy as np

PART_TENSORS = {"tokens", "offsets", "latents", "activations", "starts", "positions"}
PART_TENSORS |= {"windows", "pairs"}


class Part:
    """One file of a part."""

    def __init__(self, file: Any):
        self._file = file

    def read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def slice(self, name: str, split: int) -> np.ndarray:
        """What a tensor of entries has of a split."""
        start, stop = self.read("starts")[split : split + 2].tolist()
        # safetensors has no empty slice at the end.
        return self._file.get_slice(name)[start:stop] if stop > start else self._empty(name)

    def _empty(self, name: str) -> np.ndarray:
        return np.empty(0, dtype=np.float32 if name == "activations" else np.int32)
