"""A safetensors file that is written piece by piece."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_KINDS = {"i": "I", "u": "U", "f": "F"}  # numpy's and safetensors' names of dtypes


class TensorFile:
    """A safetensors file whose tensors are written piece by piece.

    `layout` gives dtype and shape of each tensor, the ones with larger elements first. Raises
    ValueError on closing if a tensor did not get as many bytes as it has.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]]):
        header, stop = {}, 0
        self._places: dict[str, list[int]] = {}
        for name, (kind, shape) in layout.items():
            start, stop = stop, stop + kind.itemsize * math.prod(shape)
            code = f"{_KINDS[kind.kind]}{8 * kind.itemsize}"
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, stop]}
            self._places[name] = [start, stop]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._first = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def append(self, name: str, values: np.ndarray) -> None:
        """Write the next values of a tensor, of its dtype."""
        place = self._places[name]
        self._file.seek(self._first + place[0])
        self._file.write(np.ascontiguousarray(values).data)
        place[0] += values.nbytes

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._file.close()
        unfinished = [name for name, (at, stop) in self._places.items() if at != stop]
        if unfinished and kind is None:
            raise ValueError(f"Not all of {', '.join(unfinished)} was written.")
