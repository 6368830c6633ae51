"""Joining stores that several harvests or machines wrote, and giving up a part."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import atomic_path, atomic_write_json, no_address
from ..hashing import hash_file
from ..text.window_numbers import window_numbers
from .beginning import refuse
from .manifest import MANIFEST, read_manifest, same_sources
from .part_windows import load_part_windows, shift_texts, windows_name
from .plan import plan_part
from .shard_notes import is_whole, read_note, shard_name
from .shards import damaged
from .writing import writing


def merge_stores(path: Path, stores: Sequence[Path]) -> None:
    """Join stores into a new one at `path`; what `ActivationStore.merge` does."""
    if path.exists():
        raise ValueError(f"'{path}' exists already; give the merged store a new folder.")
    manifests = []
    for store in stores:
        manifest = read_manifest(store)
        if manifest is None:
            raise ValueError(f"'{store}' holds no activations: there is no {MANIFEST} in it.")
        manifests.append(manifest)
    first = manifests[0]
    merged = {**first, "parts": []}
    found: dict[str, list[tuple[Path, int, dict[str, Any]]]] = {}
    for store, manifest in zip(stores, manifests, strict=True):
        if not same_sources(manifest, first):
            refuse(store, "sources", manifest["sources"], first["sources"])
        for number, part in enumerate(manifest["parts"]):
            settings, others = part["settings"], first["parts"][0]["settings"]
            if any(settings.get(n) != others.get(n) for n in ("dtype", "columns")):
                refuse(store, "settings", settings, others)
            found.setdefault(part["windows"]["sha256"], []).append((store, number, part))

    with atomic_path(path) as temporary:
        temporary.mkdir()
        texts = 0
        for copies in found.values():
            store, number, part = copies[0]
            windows = shift_texts(load_part_windows(store, number), texts - part["first_text"])
            name = windows_name(len(merged["parts"]))
            windows.save_to_disk(no_address(temporary) / name)
            shards = _collect(copies, len(plan_part(path, part, windows).bounds))
            made = part | {"complete": True, "first_text": texts, "shards": []}
            made["first_shard"] = sum(len(p["shards"]) for p in merged["parts"])
            for i, (file, shard) in enumerate(tqdm(shards, desc="Merging", unit=" shards")):
                if hash_file(file) != shard["sha256"]:
                    raise damaged(file, "its contents do not match their checksum")
                name = shard_name(made["first_shard"] + i)
                try:
                    os.link(file, temporary / name)
                except OSError:  # another disk, or a file system without hard links
                    shutil.copyfile(file, temporary / name)
                made["shards"].append({**shard, "file": name})
            merged["parts"].append(made)
            texts = 1 + int(window_numbers(windows, "text_id").max())
        atomic_write_json(temporary / MANIFEST, merged)


def _collect(
    copies: Sequence[tuple[Path, int, dict[str, Any]]], count: int
) -> list[tuple[Path, dict[str, Any]]]:
    """Every shard of a part, from whichever store has it."""
    shards = []
    for i in range(count):
        for store, _, part in copies:
            file = store / shard_name(part["first_shard"] + i)
            shard = part["shards"][i] if part["complete"] else read_note(file)
            if shard is not None and is_whole(store, shard):
                shards.append((file, shard))
                break
        else:
            names = ", ".join(f"'{store}'" for store, _, _ in copies)
            raise ValueError(
                f"Shard {i} of {count} is in none of {names}: name the folder that has it, "
                "or finish the harvest first."
            )
    return shards


def drop_unfinished(path: Path) -> int:
    """Remove the unfinished last part of a store, and say how many shards of it there were.

    Raises ValueError if every part is complete, or nothing would be left.
    """
    with writing(path):
        manifest = read_manifest(path)
        if manifest is None or manifest["parts"][-1]["complete"]:
            raise ValueError(f"'{path}' has no unfinished part.")
        if len(manifest["parts"]) == 1:
            raise ValueError(f"'{path}' has no part that is complete: delete the folder.")
        dropped = manifest["parts"].pop()
        atomic_write_json(path / MANIFEST, manifest)
        notes = 0
        for file in path.glob("shard_*"):
            if int(file.stem.removeprefix("shard_")) >= dropped["first_shard"]:
                notes += file.suffix == ".json"
                file.unlink()
        shutil.rmtree(path / windows_name(len(manifest["parts"])), ignore_errors=True)
        return notes
