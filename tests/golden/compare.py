"""Comparing what the code does with what was recorded of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True)
class Golden:
    """Compares values with the files that hold them, or writes these."""

    record: bool

    def text(self, name: str, found: str) -> None:
        """A text, every character of it."""
        path = FILES / f"{name}.txt"
        expected = self._expected(path, found)
        assert found == expected, _diff(found, expected, name)

    def words(self, name: str, found: str) -> None:
        """A text but for where its lines break, which is argparse's own doing."""
        path = FILES / f"{name}.txt"
        expected = self._expected(path, found)
        assert "".join(found.split()) == "".join(expected.split()), _diff(found, expected, name)

    def json(self, name: str, found: Any, *, rel: float = 0.0, shape: tuple[str, ...] = ()) -> None:
        """JSON values with the order of their keys, floats up to a share `rel` of them.

        Of what is at a place that matches one of `shape` (regular expressions of paths such as
        "/0/latents"), only keys and types are compared.
        """
        written = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        expected = json.loads(self._expected(FILES / f"{name}.json", written))
        wrong = differences(json.loads(written), expected, rel=rel, shape=shape)
        assert not wrong, "\n".join([f"{len(wrong)} differences from {name}.json:", *wrong[:20]])

    def _expected(self, path: Path, found: str) -> str:
        if self.record:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found, encoding="utf-8")
        assert path.exists(), f"{path.name} was never recorded: pytest tests/golden --record"
        return path.read_text(encoding="utf-8")


def differences(
    found: Any, expected: Any, place: str = "", *, rel: float, shape: tuple[str, ...]
) -> list[str]:
    """Where two JSON values differ."""
    if any(re.fullmatch(pattern, place) for pattern in shape):
        found, expected = shape_of(found), shape_of(expected)
        same = found == expected
        return [] if same else [f"{place}: is like {found!r:.400}, not {expected!r:.400}"]
    if isinstance(found, dict) and isinstance(expected, dict):
        if list(found) != list(expected):
            return [f"{place}: has the keys {list(found)}, not {list(expected)}"]
        pairs = [(str(key), found[key], expected[key]) for key in found]
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{place}: has {len(found)} values, not {len(expected)}"]
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(found, expected, strict=True))]
    elif isinstance(found, float) and isinstance(expected, float):
        same = math.isclose(found, expected, rel_tol=rel, abs_tol=rel / 100)
        same |= math.isnan(found) and math.isnan(expected)
        return [] if same else [f"{place}: is {found}, not {expected}"]
    else:
        same = type(found) is type(expected) and found == expected
        return [] if same else [f"{place}: is {found!r:.400}, not {expected!r:.400}"]
    return [
        line
        for key, *pair in pairs
        for line in differences(*pair, f"{place}/{key}", rel=rel, shape=shape)
    ]


def shape_of(value: Any) -> Any:
    """Keys and types of JSON values; of a list, what kinds of values are in it."""
    if isinstance(value, dict):
        return {key: shape_of(one) for key, one in value.items()}
    if isinstance(value, list):
        kinds = {json.dumps(shape_of(one)) for one in value}
        return [json.loads(kind) for kind in sorted(kinds)]
    return type(value).__name__


def file_names(folder: Path, *left_out: str) -> list[str]:
    """Every file below a folder, but for those of these names."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in left_out]
    return sorted(file.relative_to(folder).as_posix() for file in files)


def contents(file: Path) -> Any:
    """Names and shapes of what a file of a checkpoint holds."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {name: str(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return outline(torch.load(file, weights_only=False))


def outline(value: Any) -> Any:
    """Keys, types and shapes."""
    if isinstance(value, dict):
        return {str(key): outline(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return [outline(one) for one in value]
    return type(value).__name__


def _diff(found: str, expected: str, name: str) -> str:
    lines = unified_diff(expected.splitlines(), found.splitlines(), name, "found", lineterm="", n=1)
    return "\n".join(list(lines)[:60]) or f"{name}: other white space"
