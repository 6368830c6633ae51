"""What is wrong with a file of data, said in words of our own."""

import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MAGIC = {
    b"\xff\xfe\x00\x00": ("text in UTF-32", "convert it to UTF-8"),
    b"PAR1": ("a parquet file", "rename it so that it ends in .parquet"),
    b"ARROW1": ("an Arrow file", "rename it so that it ends in .arrow"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"SQLite": ("a database", "export its table as .jsonl"),
    b"\xff\xfe": ("text in UTF-16", "convert it to UTF-8, or add `--data_args encoding=utf-16`"),
    b"\xfe\xff": ("text in UTF-16", "convert it to UTF-8, or add `--data_args encoding=utf-16`"),
    b"<!DOCTYPE": ("a web page", "download the data itself"),
    b"<html": ("a web page", "download the data itself"),
}
POINTER = b"version https://git-lfs"
_NULL_FIRST = re.compile(rb"(\xef\xbb\xbf)?\s*\[?\s*null\b")


class FaultError(ValueError):
    """What is wrong with a file, in words of our own."""


def check_nulls(path: Path, plain: Path, head: bytes) -> None:
    """Raise ValueError where a row of a file of JSON is null: pyarrow does not survive some."""
    if not head:
        return
    with plain.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(b"\nnull")
        if place < 0 and not _NULL_FIRST.match(head):
            return
        number = 1 + content[: place + 1].count(b"\n")
    raise ValueError(f"{path} has null for a row, in line {number}: take it out")


def pointer(file: Path) -> str:
    return f"{file} is a pointer of git-lfs, not the data: run `git lfs pull` in its folder"


def check_head(path: Path, head: bytes, builder: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if a file begins as one of another kind does."""
    if not head:
        raise ValueError(f"{path} is empty")
    if head.startswith(POINTER):
        raise ValueError(pointer(path))
    if builder == "parquet" and not head.startswith(b"PAR1"):
        raise ValueError(f"{path} is no parquet file, although it ends so: rename or replace it")
    if builder in ("parquet", "arrow") or "encoding" in options:
        return
    for magic, (kind, remedy) in _MAGIC.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is {kind}: {remedy}")


def fault(file: Path, ending: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong in a file of text that could not be read, None if it is not known."""
    if ending in (".parquet", ".arrow"):
        return "it is damaged or cut short; make or download it again"
    encoding = options.get("encoding", "utf-8-sig")
    try:
        with file.open(encoding=encoding) as lines:
            for number, line in enumerate(lines, start=1):
                if ending in (".jsonl", ".ndjson") and line.strip() and not _is_json(line):
                    return f"line {number} is not JSON: {line.strip()[:60]!r}"
        if ending == ".json":
            return _json_fault(file, encoding)
    except UnicodeDecodeError as error:
        return (
            f"it is not {encoding.removesuffix('-sig')} (byte {error.object[error.start]:#04x}): "
            "convert it, or name its encoding with `--data_args encoding=latin-1`"
        )
    except (OSError, LookupError):
        pass
    return None


def _json_fault(file: Path, encoding: str) -> str | None:
    text = file.read_text(encoding=encoding)
    if _is_json(text) or all(_is_json(line) for line in text.splitlines() if line.strip()):
        return None
    return "it is neither one JSON value nor one in each line"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def reason_of(error: BaseException) -> str:
    while error.__cause__ is not None and not isinstance(error, FaultError):
        error = error.__cause__
    return first_line(error)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
