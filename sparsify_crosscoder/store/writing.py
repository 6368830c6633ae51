"""Writing a store: harvests that share the work, resume and append.

A part of a store is one harvest: its windows, and which of them go into which shard, are settled
before a model runs. Rank r of W writes every W-th shard. A shard that is whole has a note beside it
(`shard_000000.json`) until the part is complete and the first rank enters all of them into the
manifest, so a shard never depends on how many processes wrote the store, or in how many attempts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from datasets import Dataset
from filelock import FileLock, Timeout

from ..files import atomic_write_json
from ..harvest.divergence import divergence_columns
from ..harvest.harvest import run_harvest
from ..harvest.report import HarvestReport
from ..harvest.source import Source
from ..text.window_numbers import window_numbers
from ..world import current_world
from .beginning import begin_part
from .dtypes import get_dtype
from .harvest_progress import HarvestProgress
from .manifest import LOCK, MANIFEST, column_names, new_manifest, read_manifest
from .part_windows import load_part_windows
from .plan import default_shard_pairs, plan_part
from .shard_notes import is_good, note_of, read_note, write_noted
from .shards import bytes_per_pair

ANSWERS = "answers"
"""A folder that may be in a store's before anything is harvested: of its texts, by the models."""


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
    get_dtype(dtype)
    if shard_pairs is None:
        shard_pairs = default_shard_pairs([source.width for source in sources], dtype)
    if shard_pairs < 1:
        raise ValueError(f"shard_pairs must be at least 1, got {shard_pairs}.")
    if not window_numbers(windows, "num_pairs").any():
        raise ValueError("The windows hold no pair: there is nothing to harvest.")
    wanted = new_manifest(sources)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "shard_pairs": shard_pairs,
        "dtype": dtype,
    }
    if columns := divergence_columns(sources):
        settings["columns"] = [*columns]

    def begin() -> int | None:
        return begin_part(path, wanted, windows, settings, append, origin)

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


def check_free(path: Path) -> None:
    """Raise ValueError where a folder holds other files and no store."""
    if not path.exists() or read_manifest(path) is not None:
        return
    others = {f.name for f in path.iterdir() if not f.name.startswith(".tmp")}
    if others - {LOCK, ANSWERS}:
        raise ValueError(
            f"'{path}' holds other files and no {MANIFEST}; give a new or an empty folder."
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the only one to write to the store at `path`.

    Raises ValueError if another process does, or the folder holds other files and no store.
    """
    made = not path.exists()
    check_free(path)
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


def _harvest_part(path: Path, sources: Sequence[Source], number: int) -> HarvestReport:
    """Write this rank's shards that are not there yet."""
    report = HarvestReport()
    manifest = read_manifest(path)
    assert manifest is not None
    part, windows = manifest["parts"][number], load_part_windows(path, number)
    settings, world = part["settings"], current_world()
    bounds, rows, files = plan_part(path, part, windows)
    mine = [i for i in range(world.rank, len(bounds), world.size) if not is_good(files[i])]
    columns = column_names(part)
    widths = [source.width for source in sources]
    bytes_each = bytes_per_pair(widths, settings["dtype"], len(columns))
    with (
        HarvestProgress(files, rows, bytes_each, columns, disable=world.rank > 0) as progress,
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
            pending = pool.submit(write_noted, files[i], harvest, settings["dtype"])
            del harvest
        if pending is not None:
            pending.result()
    return report


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


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _first_rank_tells(find: Callable[[], int | None]) -> int | None:
    """What `find` gives on the first rank, on all of them."""
    found = [find() if current_world().rank == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]
