"""Writing a store: harvests that share the work, resume and append.

A part of a store is one harvest: its windows, and which of them go into which shard, are settled
before a model runs. Rank r of W writes every W-th shard. A shard that is whole has a note beside it
(`shard_000000.json`) until the part is complete and the first rank enters all of them into the
manifest, so a shard never depends on how many processes wrote the store, or in how many attempts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from datasets import Dataset
from filelock import FileLock, Timeout

from ..files import atomic_path, atomic_write_json, hash_file, no_address, remove_leftovers
from ..harvest.harvest import run_harvest
from ..harvest.report import HarvestReport
from ..harvest.source import Source
from ..records import read_json
from ..world import current_world
from .harvest_progress import HarvestProgress
from .manifest import (
    LOCK,
    MANIFEST,
    ShardNote,
    hash_windows,
    is_whole,
    load_part_windows,
    new_manifest,
    new_part,
    note_of,
    read_manifest,
    same_sources,
    shard_name,
    shift_texts,
    windows_name,
)
from .shards import DTYPES, bytes_per_pair, write_shard

_SHARD_BYTES, _SHARD_PAIRS = 2**28, 2**16


def harvest_into(
    path: Path,
    sources: Sequence[Source],
    windows: Dataset,
    *,
    batch_size: int,
    shard_pairs: int | None,
    dtype: str,
    append: bool,
    origin: dict[str, Any] | None,
) -> HarvestReport:
    """Harvest `windows` into the store at `path`; what `ActivationStore.create` does."""
    if dtype not in DTYPES:
        raise ValueError(f"A store keeps activations as {', '.join(DTYPES)}, not {dtype!r}.")
    if shard_pairs is None:
        shard_pairs = default_shard_pairs([source.width for source in sources], dtype)
    if shard_pairs < 1:
        raise ValueError(f"shard_pairs must be at least 1, got {shard_pairs}.")
    if not sum(windows["num_pairs"][:]):
        raise ValueError("The windows hold no pair: there is nothing to harvest.")
    wanted = new_manifest(sources)
    settings = {"batch_size": batch_size, "shard_pairs": shard_pairs, "dtype": dtype}

    def begin() -> int | None:
        return _begin(path, wanted, windows, settings, append, origin)

    report = HarvestReport()
    first = current_world().rank == 0
    with writing(path) if first else nullcontext():
        while (part := _first_rank_tells(begin)) is not None:
            if not (path / MANIFEST).exists() and os.environ.get("LOCAL_RANK") == "0":
                with writing(path):  # a machine with a folder of its own
                    begin()
            _wait()
            report += _harvest_part(path, sources, part)
            _wait()
            if missing := _first_rank_tells(lambda part=part: _finish(path, part)):
                raise ValueError(
                    f"{missing} shards are not in '{path}': other machines wrote them to folders "
                    "of their own. Bring the folders to one machine and join them: "
                    "`sparsify-crosscoder store FOLDER ... --merge_into NEW`."
                )
    return report


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the only one to write to the store at `path`.

    Raises ValueError if another process does, or the folder holds other files and no store.
    """
    made = not path.exists()
    if not made and read_manifest(path) is None:
        others = [f.name for f in path.iterdir() if not f.name.startswith(".tmp")]
        if set(others) - {LOCK}:
            raise ValueError(
                f"'{path}' holds other files and no {MANIFEST}; give a new or an empty folder."
            )
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"Another process is writing to '{path}'. Wait until it has ended, or give another "
            "folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
        if made and {file.name for file in path.iterdir()} <= {LOCK}:
            shutil.rmtree(path)


class Plan(NamedTuple):
    """Which windows of a part go into which shard."""

    bounds: list[tuple[int, int]]
    """Windows [start, stop) of each shard."""

    rows: list[int]
    """Pairs of each shard."""

    files: list[Path]


def plan_part(path: Path, part: dict[str, Any], windows: Dataset) -> Plan:
    """How the windows of a part of the store at `path` are divided."""
    num_pairs = np.asarray(windows["num_pairs"], dtype=np.int64)
    text_ids = np.asarray(windows["text_id"], dtype=np.int64)
    bounds = shard_bounds(num_pairs, text_ids, part["settings"]["shard_pairs"])
    return Plan(
        bounds,
        [int(num_pairs[slice(*bound)].sum()) for bound in bounds],
        [path / shard_name(part["first_shard"] + i) for i in range(len(bounds))],
    )


def _begin(
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
    elif parts[0]["settings"]["dtype"] != settings["dtype"]:
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
            part["first_text"] = 1 + int(np.asarray(last["text_id"]).max())
        parts.append(part)
    windows = shift_texts(windows, parts[number]["first_text"])
    _check_room(path, manifest, plan_part(path, parts[number], windows))
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
    with _explained(path / MANIFEST):
        atomic_write_json(path / MANIFEST, manifest)
    folder = path / windows_name(number)
    if folder.exists() and hash_windows(load_part_windows(path, number)) != hash_windows(windows):
        shutil.rmtree(folder)
    if not folder.exists():
        with _explained(folder), atomic_path(folder) as temporary:
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


def _harvest_part(path: Path, sources: Sequence[Source], number: int) -> HarvestReport:
    """Write this rank's shards that are not there yet."""
    report = HarvestReport()
    manifest = read_manifest(path)
    assert manifest is not None
    part, windows = manifest["parts"][number], load_part_windows(path, number)
    settings, world = part["settings"], current_world()
    bounds, rows, files = plan_part(path, part, windows)
    mine = [i for i in range(world.rank, len(bounds), world.size) if not _is_good(files[i])]
    bytes_each = bytes_per_pair([source.width for source in sources], settings["dtype"])
    with (
        HarvestProgress(files, rows, bytes_each, disable=world.rank > 0) as progress,
        ThreadPoolExecutor(1, "write") as pool,
    ):
        pending: Future[None] | None = None
        for i in mine:
            harvest = run_harvest(
                sources,
                windows,
                range(*bounds[i]),
                batch_size=settings["batch_size"],
                progress=progress.add,
            )
            report += harvest.report
            if pending is not None:
                pending.result()
            progress.refresh_others()
            pending = pool.submit(_write, files[i], harvest.activations, settings["dtype"])
            del harvest
        if pending is not None:
            pending.result()
    return report


def _write(file: Path, activations: list[Any], dtype: str) -> None:
    with _explained(file):
        shard = write_shard(file, activations, dtype)
        atomic_write_json(note_of(file), shard)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
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


def _is_good(file: Path) -> bool:
    """Whether a shard was written, and is as it was written."""
    note = read_note(file)
    if note is None or not is_whole(file.parent, note):
        return False
    if hash_file(file) == note["sha256"]:
        return True
    logging.getLogger(__name__).warning("'%s' is damaged and is harvested again.", file)
    return False


def _finish(path: Path, number: int) -> int:
    """Enter a part's shards into the manifest, or say how many of them are not in the folder."""
    manifest = read_manifest(path)
    assert manifest is not None
    part = manifest["parts"][number]
    files = plan_part(path, part, load_part_windows(path, number)).files
    notes = [note for note in map(read_note, files) if note is not None]
    if len(notes) == len(files):
        part |= {"complete": True, "shards": notes}
        atomic_write_json(path / MANIFEST, manifest)
        for file in files:
            note_of(file).unlink()
    return len(files) - len(notes)


def default_shard_pairs(widths: Sequence[int], dtype: str) -> int:
    """Pairs of a shard: as many as make 256 MB, at most 65,536."""
    return max(min(_SHARD_PAIRS, int(_SHARD_BYTES / bytes_per_pair(widths, dtype))), 1)


def shard_bounds(
    num_pairs: np.ndarray, text_ids: np.ndarray, shard_pairs: int
) -> list[tuple[int, int]]:
    """Windows [start, stop) of each shard: whole texts, until they have `shard_pairs` pairs.

    A text is only cut where it has that many pairs itself.
    """
    ends = np.cumsum(num_pairs)
    closes_text = np.append(text_ids[1:] != text_ids[:-1], True)
    bounds, start, before, text_before = [], 0, 0, 0
    for window in range(len(num_pairs)):
        enough = ends[window] - before >= shard_pairs
        if enough and (closes_text[window] or ends[window] - text_before >= shard_pairs):
            bounds.append((start, window + 1))
            start, before = window + 1, int(ends[window])
            text_before = before
        if closes_text[window]:
            text_before = int(ends[window])
    if before < ends[-1]:
        bounds.append((start, len(num_pairs)))
    return bounds


def _check_room(path: Path, manifest: dict[str, Any], plan: Plan) -> None:
    widths = [source["width"] for source in manifest["sources"]]
    bytes_each = bytes_per_pair(widths, manifest["parts"][0]["settings"]["dtype"])
    missing = sum(
        rows for rows, file in zip(plan.rows, plan.files, strict=True) if not note_of(file).exists()
    )
    needed, free = missing * bytes_each, shutil.disk_usage(path).free
    if needed > free:
        raise ValueError(
            f"The activations still missing in '{path}' take {needed / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free there. Use fewer --pairs, --dtype int8, or another disk."
        )


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _first_rank_tells(find: Callable[[], int | None]) -> int | None:
    """What `find` gives on the first rank, on all of them."""
    found = [find() if current_world().rank == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]
