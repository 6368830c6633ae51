"""Files of data as `datasets` can open them: unpacked, and under names that are only names."""

import bz2
import glob
import gzip
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import config

from ..hashing import hash_text
from .data_faults import POINTER, FaultError, first_line

BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
COMPRESSIONS: dict[str, tuple[bytes, Callable[[str], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda path: pa.input_stream(path, compression="zstd")),
}
_PIECE = 1 << 20


def ending_of(name: str) -> tuple[str, str]:
    """The ending of a file's name and that of its compression, in lower case."""
    stem, ending = os.path.splitext(name.lower())
    if ending in COMPRESSIONS:
        return os.path.splitext(stem)[1], ending
    return ending, ""


def builder_of(file: Path) -> str:
    """What a file is read with by its ending, "" if by nothing."""
    return BUILDERS.get(ending_of(file.name)[0], "")


def _with_lower_ending(name: str) -> str:
    """The name with its ending as `datasets` knows it."""
    size = sum(map(len, ending_of(name))) if builder_of(Path(name)) else 0
    return name[: len(name) - size] + name[len(name) - size :].lower()


def plain_file(path: Path, compression: str) -> Path:
    """The file, unpacked if it is compressed, under a name that is no pattern and no address.

    Whether it is compressed is seen in the file. Raises ValueError for a damaged one.
    """
    head = head_of(path)
    found = next((end for end, (magic, _) in COMPRESSIONS.items() if head.startswith(magic)), "")
    if compression and not found and head and not head.startswith(POINTER):
        raise ValueError(
            f"{path} is not compressed, although it ends in {compression}: rename it, or "
            "download it again"
        )
    if not found:
        return literal(path)
    target = _place_of([path]) / f"data{ending_of(path.name)[0]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with COMPRESSIONS[found][1](str(path)) as source, partial.open("wb") as sink:
            while piece := source.read(_PIECE):
                sink.write(piece)
        os.replace(partial, target)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise FaultError(
            f"{path} cannot be unpacked ({first_line(error)}): it is damaged; download or "
            "make it again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def literal(path: Path) -> Path:
    """The file or folder under a path that `datasets` takes for nothing else than a path."""
    files = [path] if path.is_file() else [*files_in(path)]
    inside = [path.name] if path.is_file() else [str(file.relative_to(path)) for file in files]
    # Addresses, and names of variables that `datasets` would put the values of in place.
    odd = any(re.search(r"::|://|\n|\$", name) for name in [str(path), *inside])
    if path.is_dir():
        odd |= glob.has_magic(str(path)) or any(_with_lower_ending(n) != n for n in inside)
    if not odd:
        return path
    place = _place_of(files)
    if path.is_file():
        target = place / f"data{path.suffix}"
        _link(path, target)
        return target
    used: set[Path] = set()
    for file, name in zip(files, inside, strict=True):
        target = place / "data" / re.sub("[:\n$]", "_", _with_lower_ending(name))
        if target in used:
            target = target.with_name(f"{len(used)}_{target.name}")
        used.add(target)
        _link(file, target)
    return place / "data"


def _link(file: Path, target: Path) -> None:
    if not target.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)


def _place_of(files: list[Path]) -> Path:
    """A folder in the cache that belongs to these files as they are now."""
    key = [(str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files]
    cache = Path(os.path.abspath(config.HF_DATASETS_CACHE))
    if glob.has_magic(str(cache)) or re.search(r"::|\$", str(cache)):
        cache = Path(tempfile.gettempdir()) / f"sparsify_crosscoder_{os.getuid()}"
    return cache / "literal_names" / hash_text(repr(key), "replace")[:24]


def files_in(folder: Path) -> Iterator[Path]:
    """The files that `datasets` looks at in a folder: none that is hidden, in a fixed order."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
