"""The part of a store that a harvest is to write: a new one, or one that is not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..files import atomic_path, atomic_write_json, no_address, remove_leftovers
from ..text.window_numbers import window_numbers
from .manifest import MANIFEST, new_part, read_manifest, same_sources
from .part_windows import hash_windows, load_part_windows, shift_texts, windows_name
from .plan import check_room, plan_part
from .shard_notes import explained, is_whole, note_of


def begin_part(
    path: Path,
    wanted: dict[str, Any],
    windows: Dataset,
    settings: dict[str, Any],
    append: bool,
    origin: dict[str, Any] | None,
) -> int | None:
    """Make the folder ready for a part that is not whole, and say which; None if all are."""
    manifest = read_manifest(path) or wanted
    parts = manifest["parts"]
    if not same_sources(manifest, wanted):
        refuse(path, "sources", manifest["sources"], wanted["sources"])
    covered, rest = _covered(parts, windows)
    if rest is None or not parts:
        different = [parts[n]["settings"] for n in covered if parts[n]["settings"] != settings]
        if different:
            refuse(path, "settings", different[0], settings)
    elif not append:
        asked = {"count": len(windows), "sha256": hash_windows(windows)}
        refuse(path, "windows", [part["windows"] for part in parts], asked)
    elif any(parts[0]["settings"].get(n) != settings.get(n) for n in ("dtype", "columns")):
        refuse(path, "settings", parts[0]["settings"], settings)
    elif not all(part["complete"] for part in parts):
        raise ValueError(
            f"'{path}' has an unfinished part, so nothing can be added to it. Run the harvest that "
            f"began it again, or drop it: `sparsify-crosscoder store {path} --drop_unfinished`."
        )
    if rest is None:
        damaged_parts = [n for n in covered if not _is_whole_part(path, n, parts[n])]
        if not damaged_parts:
            for shard in (shard for n in covered for shard in parts[n]["shards"]):
                # Left by a harvest that was killed at its end.
                note_of(path / shard["file"]).unlink(missing_ok=True)
            return None
        number = damaged_parts[0]
        if parts[number]["complete"]:
            _reopen(path, parts[number])
        before = sum(parts[n]["windows"]["count"] for n in covered[: covered.index(number)])
        windows = windows.select(range(before, before + parts[number]["windows"]["count"]))
    else:
        number, windows = len(parts), rest
        part = new_part(windows, settings, origin, before=parts)
        if len(covered) < len(parts):  # other texts, which begin at 0 again
            last = load_part_windows(path, number - 1)
            part["first_text"] = 1 + int(window_numbers(last, "text_id").max())
        parts.append(part)
    windows = shift_texts(windows, parts[number]["first_text"])
    check_room(path, manifest, plan_part(path, parts[number], windows))
    _write_beginning(path, manifest, number, windows)
    return number


def _covered(parts: list[dict[str, Any]], windows: Dataset) -> tuple[list[int], Dataset | None]:
    """Parts that together hold `windows` or their beginning, and the windows that none holds."""
    digest = hash_windows(windows)
    for number, part in enumerate(parts):
        if part["windows"]["sha256"] == digest:
            return [number], None
    covered, place = [], 0
    for number, part in enumerate(parts):
        stop = place + part["windows"]["count"]
        if stop > len(windows):
            break
        if hash_windows(windows.select(range(place, stop))) != part["windows"]["sha256"]:
            break
        covered.append(number)
        place = stop
    if place and place == len(windows):
        return covered, None
    if len(covered) < len(parts):
        return [], windows
    return covered, windows.select(range(place, len(windows)))


def _is_whole_part(path: Path, number: int, part: dict[str, Any]) -> bool:
    there = part["complete"] and (path / windows_name(number)).exists()
    return there and all(is_whole(path, shard) for shard in part["shards"])


def _write_beginning(path: Path, manifest: dict[str, Any], number: int, windows: Dataset) -> None:
    """Write the manifest and a part's windows; what a killed harvest left half written goes."""
    remove_leftovers(path)
    with explained(path / MANIFEST):
        atomic_write_json(path / MANIFEST, manifest)
    folder = path / windows_name(number)
    if folder.exists() and hash_windows(load_part_windows(path, number)) != hash_windows(windows):
        shutil.rmtree(folder)
    if not folder.exists():
        with explained(folder), atomic_path(folder) as temporary:
            windows.save_to_disk(no_address(temporary.parent) / temporary.name)


def refuse(path: Path, what: str, found: Any, asked: Any) -> None:
    """Raise the ValueError for a store whose sources, settings or windows are others."""
    more = " `--append` adds more texts to them." if what == "windows" else ""
    raise ValueError(
        f"'{path}' holds other activations than those asked for; give another folder, or delete "
        f"this one.{more}\n  {what}: {json.dumps(found)}\n  asked: {json.dumps(asked)}"
    )


def _reopen(path: Path, part: dict[str, Any]) -> None:
    """Make a complete part unfinished, so that what is missing is harvested again."""
    for shard in part["shards"]:
        if is_whole(path, shard):
            atomic_write_json(note_of(path / shard["file"]), shard)
    part |= {"complete": False, "shards": []}
