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

from .adapter_name import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_folder,
    joined_revision,
    parts_of,
)
from .model_files import WEIGHTS, model_folder
from .model_name import ModelName

_CONFIG = "config.json"
# What saving a model or an adapter again may change without changing it.
_VOLATILE = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"),
}
_READ_AT_ONCE = 2**26


def checkpoint_digest(name: str, revision: str | None = None) -> str | None:
    """Digest of the checkpoint that a folder, or the hub's local copy of a revision, holds.

    That of an adapter is `BASE+ADAPTER`, the digests of both. None where there are no weights on
    this disk. Raises ValueError for damaged files.
    """
    base, adapter = parts_of(ModelName(name, revision))
    digest = _digest_of(model_folder(base.name, base.revision), _CONFIG)
    if adapter is None:
        return digest
    own = _digest_of(adapter_folder(adapter), ADAPTER_CONFIG)
    return None if digest is None or own is None else f"{digest}+{own}"


def _digest_of(folder: Path | None, config: str) -> str | None:
    if folder is None:
        return None
    files = weight_files(folder) if config == _CONFIG else [folder / ADAPTER_WEIGHTS]
    files = [file for file in files if file.is_file()]
    if not files:
        return None
    stats = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _digest(stats, _settings(folder / config))


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The hub's commit that a revision of a hub id stands for here; None for a folder.

    Of an adapter, that of its base and its own: `BASE+ADAPTER` (see `adapter_name`).
    """
    base, adapter = parts_of(ModelName(name, revision))
    commit = _commit(base.name, model_folder(base.name, base.revision))
    if adapter is None:
        return commit
    return joined_revision(commit, _commit(adapter.name, adapter_folder(adapter)))


def _commit(name: str, folder: Path | None) -> str | None:
    if os.path.isdir(name) or folder is None:
        return None
    return folder.name if folder.parent.name == "snapshots" else None


def is_here(name: str, revision: str | None = None) -> bool:
    """Whether a model, and the base of an adapter, is on this disk, at least in part."""
    base, adapter = parts_of(ModelName(name, revision))
    return model_folder(base.name, base.revision) is not None and (
        adapter is None or adapter_folder(adapter) is not None
    )


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
    pairs = zip(parts_of(ModelName(one)), parts_of(ModelName(other)), strict=True)
    return all(
        a == b or (a is not None and b is not None and _same_path(a.name, b.name)) for a, b in pairs
    )


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
    for key, form in (("revision", "{}@{}"), ("hookpoint", "{} {}")):
        values = [source.get(key) for source in sources]
        told = list(shown)
        for s, (name, value) in enumerate(zip(shown, values, strict=True)):
            twins = {values[o] for o in range(len(shown)) if shown[o] == name}
            if len(twins) > 1 and value is not None:
                told[s] = form.format(name, _short(value) if key == "revision" else value)
        shown = told
    return shown


def _short(revision: str) -> str:
    return "+".join(part[:8] for part in revision.split("+"))


def revision_suffix(source: Mapping[str, Any]) -> str:
    """The commit of a source's model as it is shown behind its name, if it has one."""
    revision = source.get("revision")
    return "" if revision is None else f"@{_short(revision)}"


def _same_path(one: str, other: str) -> bool:
    return one == other or (
        _is_path(one) and _is_path(other) and os.path.realpath(one) == os.path.realpath(other)
    )


def _is_path(name: str) -> bool:
    return os.path.isabs(name) or name.startswith(".") or os.path.exists(name)


def _settings(file: Path) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
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
