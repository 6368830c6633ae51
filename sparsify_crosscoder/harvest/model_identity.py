"""Which model a name stands for: a folder or hub id, a commit, and what its weight files hold.

A checkpoint's digest is that of its `config.json` and of every tensor's name, dtype, shape and
bytes, in the order of the names. It is the same wherever the files lie, however they are divided
into shards and in whichever precision the model is loaded. Weights that are no safetensors count
file by file.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from .model_files import WEIGHTS, model_folder

_CONFIG = "config.json"
# What saving a model again may change without changing the model.
_VOLATILE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_READ_AT_ONCE = 2**26


def checkpoint_digest(name: str, revision: str | None = None) -> str | None:
    """Digest of the checkpoint that a folder, or the hub's local copy of a revision, holds.

    None where there are no weights on this disk. Raises ValueError for damaged files.
    """
    folder = model_folder(name, revision)
    if folder is None:
        return None
    files = weight_files(folder)
    if not files:
        return None
    stats = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _digest(stats, _settings(folder))


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The hub's commit that a revision of a hub id stands for here; None for a folder."""
    if os.path.isdir(name) or (folder := model_folder(name, revision)) is None:
        return None
    return folder.name if folder.parent.name == "snapshots" else None


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that transformers loads weights from."""
    for whole in WEIGHTS:
        if (folder / whole).is_file():
            return [folder / whole]
        index = folder / f"{whole}.index.json"
        if index.is_file():
            try:
                shards = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
                found = [folder / shard for shard in sorted(shards)]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _damaged(index, error) from error
            return [file for file in found if file.is_file()]
    return []


def same_name(one: str, other: str) -> bool:
    """Whether two names are the same hub id, or the same path."""
    if one == other:
        return True
    if not (_is_path(one) and _is_path(other)):
        return False
    return os.path.realpath(one) == os.path.realpath(other)


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions of sources are of one model.

    By the digests of their checkpoints where both have them, or else by names and, where both have
    them, revisions.
    """
    for key in ("checkpoint", "revision"):
        values = one.get(key), other.get(key)
        if None not in values and (key == "checkpoint" or values[0] != values[1]):
            return values[0] == values[1]
    return same_name(str(one.get("name")), str(other.get("name")))


def short_names(names: Sequence[str]) -> list[str]:
    """Names to show: of each path its last parts, as many as tell different names apart."""
    parts = [Path(os.path.normpath(name)).parts for name in names]
    shown = []
    for own in parts:
        count = 1
        others = [other for other in parts if other != own]
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        shown.append(str(Path(*own[-count:])))
    return shown


def source_names(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name to show for each of a run's or store's sources, all different where they differ.

    The end of the model's name, with the revision where one name has several, and the hookpoint
    where one model is read at several places.
    """
    shown = short_names(
        [str(source.get("name", f"source {s}")) for s, source in enumerate(sources)]
    )
    for key, form in (("revision", "{}@{:.8}"), ("hookpoint", "{} {}")):
        values = [source.get(key) for source in sources]
        told = list(shown)
        for s, (name, value) in enumerate(zip(shown, values, strict=True)):
            twins = {values[o] for o in range(len(shown)) if shown[o] == name}
            if len(twins) > 1 and value is not None:
                told[s] = form.format(name, value)
        shown = told
    return shown


def revision_suffix(source: Mapping[str, Any]) -> str:
    """The commit of a source's model as it is shown behind its name, if it has one."""
    revision = source.get("revision")
    return "" if revision is None else f"@{revision:.8}"


def _is_path(name: str) -> bool:
    return os.path.isabs(name) or name.startswith(".") or os.path.exists(name)


def _settings(folder: Path) -> str:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder / _CONFIG, error) from error
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _VOLATILE}
    return json.dumps(config, sort_keys=True)


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...], settings: str) -> str:
    """Digest of files that are known by path, size and time of change."""
    digest = xxh3_128(settings.encode("utf-8", "surrogatepass"))
    tensors: list[tuple[str, Path, int, int]] = []
    for path, _, _ in files:
        file = Path(path)
        tensors += _tensors(file) if file.suffix == ".safetensors" else _as_one(file)
    for described, file, start, stop in sorted(tensors):
        digest.update(described.encode("utf-8", "surrogatepass"))
        for piece in _pieces(file, start, stop):
            digest.update(piece)
    return f"xxh3-128:{digest.hexdigest()}"


def _tensors(file: Path) -> list[tuple[str, Path, int, int]]:
    """What each tensor of a safetensors file is, and where its bytes are."""
    try:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 0 < size <= file.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        return [
            (
                f"{name} {entry['dtype']} {list(entry['shape'])}\n",
                file,
                8 + size + int(entry["data_offsets"][0]),
                8 + size + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from error


def _as_one(file: Path) -> list[tuple[str, Path, int, int]]:
    return [(f"{file.name}\n", file, 0, file.stat().st_size)]


def _pieces(file: Path, start: int, stop: int) -> Iterator[memoryview]:
    if stop <= start:
        return
    with (
        open(file, "rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        for place in range(start, stop, _READ_AT_ONCE):
            with view[place : min(place + _READ_AT_ONCE, stop)] as piece:
                yield piece


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"'{file}' is damaged ({error}); restore it from where it came.")
