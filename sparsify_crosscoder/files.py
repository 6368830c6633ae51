"""Writing files and folders whole or not at all."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp"  # safetensors begins its own like this


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or folder to; it becomes `path` at the end.

    The rename happens after everything is on disk, so `path` is either absent, old or whole. An
    exception inside the block removes the temporary. A file at `path` is replaced; a folder is not
    (OSError), since a folder with contents cannot be replaced in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}-{os.getpid()}-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _sync(written)
        os.replace(temporary, path)
        _remove(temporary)  # still there if it is a hard link to what was at `path`
    except BaseException:
        _remove(temporary)
        raise
    _sync(path.parent)


def atomic_write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        text = json.dumps(obj, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def no_address(path: Path) -> Path:
    """The same folder under a name that fsspec, and so `datasets`, takes for no address: `a::b` is
    one. It is a link that lasts as long as the process."""
    if "::" not in str(path) and "://" not in str(path):
        return path
    place = Path(tempfile.mkdtemp(prefix="sparsify-crosscoder-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    (place / "folder").symlink_to(path.absolute(), target_is_directory=True)
    return place / "folder"


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporaries that a killed process left directly inside `folder`."""
    for leftover in Path(folder).glob(f"{_TEMPORARY}*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
