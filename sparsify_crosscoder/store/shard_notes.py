"""Notes beside the shards of a part that is unfinished: which of them are whole."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from ..files import atomic_write_json
from ..harvest.harvest import Harvest
from ..hashing import hash_file
from ..records import read_json
from .shards import write_shard


class ShardNote(TypedDict):
    """What the manifest, and until then a note beside it, says of a shard."""

    file: str
    rows: int
    bytes: int
    sha256: str


def note_of(file: Path) -> Path:
    """The file beside a shard that says that it is whole, while its part is unfinished."""
    return file.with_suffix(".json")


def shard_name(number: int) -> str:
    return f"shard_{number:06d}.safetensors"


def is_whole(path: Path, shard: dict[str, Any]) -> bool:
    """Whether a shard's file is there and of its size."""
    file = path / shard["file"]
    return file.exists() and file.stat().st_size == shard["bytes"]


def write_noted(file: Path, harvest: Harvest, dtype: str) -> None:
    """Write a shard of what was harvested, and then its note."""
    with explained(file):
        shard = write_shard(file, harvest.activations, dtype, harvest.columns)
        atomic_write_json(note_of(file), shard)


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Say what to do where writing `file` fails."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(file.parent).free
        raise OSError(
            f"'{file}' could not be written ({error}); {free / 1e9:.1f} GB are free there. Make "
            "room and run the same harvest again: what is written stays."
        ) from error


def read_note(file: Path) -> dict[str, Any] | None:
    """What was written of a shard of an unfinished part, None if it is not whole."""
    try:
        return read_json(note_of(file), ShardNote, "")
    except (OSError, ValueError):
        return None


def is_good(file: Path) -> bool:
    """Whether a shard was written, and is as it was written."""
    note = read_note(file)
    if note is None or not is_whole(file.parent, note):
        return False
    if hash_file(file) == note["sha256"]:
        return True
    logging.getLogger(__name__).warning("'%s' is damaged and is harvested again.", file)
    return False
