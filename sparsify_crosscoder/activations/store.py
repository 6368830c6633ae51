"""Activations on disk: harvested once, read at random.

A store is a folder:

    manifest.json               what the store is, and the shards written so far
    windows/                    the windows dataset (`Dataset.save_to_disk`)
    shard_000000.safetensors    the pairs of consecutive windows, in the windows' order
    shard_000001.safetensors
    ...

A shard of n pairs holds `activations_0` [n, d_0], `activations_1` [n, d_1], ... and, int32 [n]
each, `window` (row of the windows dataset) and `pair` (number of the pair in that window). A shard
ends with the first window that brings it to `shard_pairs` pairs.

manifest.json:

    format      "sparsify-crosscoder activations"
    version     1
    complete    whether every shard is there
    sources     per source: name, revision, hookpoint, width, dtype of the model, sha256 of the
                tokenizer
    windows     count, pairs, sha256 of the contents
    settings    batch_size, shard_pairs, dtype of the activations
    shards      per shard: file, rows, bytes, sha256

Nothing in it depends on when, how fast or in how many attempts the store was written.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_path, atomic_write_json, remove_leftovers
from .harvest import HarvestReport, run_harvest
from .sources import Source, pick_model_dtype

FORMAT = "sparsify-crosscoder activations"
VERSION = 1
MANIFEST = "manifest.json"
WINDOWS = "windows"


class ActivationStore:
    """Activation pairs in a folder, numbered in the order of its windows.

    Made by `ActivationStore.create` or `ActivationStore.open`.
    """

    def __init__(self, path: str | Path, manifest: dict[str, Any], report: HarvestReport):
        self.path = Path(path)
        self.manifest = manifest
        self.report = report
        """What `create` read just now; empty for a store that was complete already."""
        self.windows: Dataset = _load_windows(self.path)
        self._ends = torch.tensor([s["rows"] for s in manifest["shards"]]).cumsum(0)
        self._shards: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        sources: Sequence[Source],
        windows: Dataset,
        *,
        batch_size: int,
        shard_pairs: int = 65536,
        dtype: str = "bfloat16",
    ) -> "ActivationStore":
        """Harvest all windows into the folder `path`, or finish or open what is there already.

        A harvest that was killed goes on where it stopped and ends with the same bytes. Raises
        ValueError if the folder holds anything else (nothing is changed then), if the disk has too
        little room, and as `harvest_windows` does.
        """
        path = Path(path)
        if shard_pairs < 1:
            raise ValueError(f"shard_pairs must be at least 1, got {shard_pairs}.")
        stored_dtype = pick_model_dtype("cpu", dtype)
        num_pairs = np.asarray(windows["num_pairs"], dtype=np.int64)
        if not num_pairs.sum():
            raise ValueError("The windows hold no pair: there is nothing to harvest.")
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "complete": False,
            "sources": [_describe(source) for source in sources],
            "windows": {
                "count": len(windows),
                "pairs": int(num_pairs.sum()),
                "sha256": _hash_windows(windows),
            },
            "settings": {
                "batch_size": batch_size,
                "shard_pairs": shard_pairs,
                "dtype": str(stored_dtype).removeprefix("torch."),
            },
            "shards": [],
        }
        found = _begun(path, manifest)
        bounds = _shard_bounds(num_pairs, shard_pairs)
        missing = [i for i in range(len(bounds)) if not _is_whole(path, found, i)]
        if found is not None and found["complete"] and not missing and (path / WINDOWS).exists():
            return cls.open(path)
        manifest["shards"] = found["shards"] if found is not None else []
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        atomic_write_json(path / MANIFEST, manifest)
        if not (path / WINDOWS).exists():
            with atomic_path(path / WINDOWS) as temporary:
                windows.save_to_disk(temporary)

        pairs_missing = sum(int(num_pairs[slice(*bounds[i])].sum()) for i in missing)
        _check_room(path, pairs_missing, [s.width for s in sources], stored_dtype)
        report = HarvestReport()
        with tqdm(
            desc="Harvesting",
            unit=" pairs",
            unit_scale=True,
            total=int(num_pairs.sum()),
            initial=int(num_pairs.sum()) - pairs_missing,
        ) as bar:
            for i in missing:
                harvest = run_harvest(
                    sources, windows, range(*bounds[i]), batch_size=batch_size, progress=bar.update
                )
                report += harvest.report
                shard = _write_shard(
                    path / f"shard_{i:06d}.safetensors",
                    harvest.activations,
                    harvest.origin,
                    stored_dtype,
                )
                manifest["shards"][i : i + 1] = [shard]
                atomic_write_json(path / MANIFEST, manifest)
        manifest["complete"] = True
        atomic_write_json(path / MANIFEST, manifest)
        return cls(path, manifest, report)

    @classmethod
    def open(cls, path: str | Path) -> "ActivationStore":
        """Open a complete store.

        Raises ValueError if it is no store, of another version, unfinished, or if a shard is
        missing or has the wrong size; `verify` also finds damage that leaves the size as it is.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        if manifest is None:
            raise ValueError(f"'{path}' holds no activations: there is no {MANIFEST} in it.")
        if not manifest["complete"]:
            raise ValueError(
                f"The harvest into '{path}' is unfinished ({len(manifest['shards'])} shards "
                "written). Run the same harvest again: it goes on where it stopped."
            )
        for i, shard in enumerate(manifest["shards"]):
            if not _is_whole(path, manifest, i):
                file = path / shard["file"]
                size = f"has {file.stat().st_size:,} bytes" if file.exists() else "is missing"
                raise _damaged(file, f"it {size}, its size was {shard['bytes']:,} bytes")
        return cls(path, manifest, HarvestReport())

    def __len__(self) -> int:
        """Pairs in the store."""
        return int(self._ends[-1])

    @property
    def d_sources(self) -> list[int]:
        return [source["width"] for source in self.manifest["sources"]]

    def rows(self, index: Tensor) -> list[Tensor]:
        """The pairs numbered `index` [n], in its order: one [n, d_s] tensor per source.

        Shards are memory-mapped, so only the rows asked for are read. Raises IndexError for
        numbers outside of the store.
        """
        return self._gather(index, [f"activations_{s}" for s in range(len(self.d_sources))])

    def provenance(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Window (row of `windows`) and number in the window of each pair, int64 [n] both."""
        window, pair = self._gather(index, ["window", "pair"])
        return window.long(), pair.long()

    def verify(self) -> None:
        """Read every shard and compare checksums; raises ValueError naming the first damaged."""
        for shard in tqdm(self.manifest["shards"], desc="Verifying", unit=" shards"):
            file = self.path / shard["file"]
            if _hash_file(file) != shard["sha256"]:
                raise _damaged(file, "its contents do not match their checksum")

    def _gather(self, index: Tensor, names: list[str]) -> list[Tensor]:
        index = index.long().contiguous()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"The pairs of this store are numbered 0 to {len(self) - 1}.")
        shard_of = torch.searchsorted(self._ends, index, right=True)
        out = [self._shard(0)[name] for name in names]
        out = [t.new_empty(len(index), *t.shape[1:]) for t in out]
        for shard in shard_of.unique().tolist():
            here = (shard_of == shard).nonzero()[:, 0]
            start = int(self._ends[shard]) - self.manifest["shards"][shard]["rows"]
            for result, name in zip(out, names, strict=True):
                result[here] = self._shard(shard)[name][index[here] - start]
        return out

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._shards:
            file = self.path / self.manifest["shards"][number]["file"]
            try:
                with safe_open(file, framework="pt", device="cpu") as opened:
                    # On the CPU these are views of the mapped file; nothing is read yet.
                    self._shards[number] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise _damaged(file, str(error)) from error
        return self._shards[number]


def _describe(source: Source) -> dict[str, Any]:
    # Truncation and padding change with how a tokenizer was last called.
    tokenizer = json.loads(source.tokenizer.backend_tokenizer.to_str())
    tokenizer |= {"truncation": None, "padding": None}
    return {
        "name": source.name,
        "revision": getattr(source.model.config, "_commit_hash", None),
        "hookpoint": source.hookpoint,
        "width": source.width,
        "model_dtype": str(source.model.dtype).removeprefix("torch."),
        "tokenizer": hashlib.sha256(json.dumps(tokenizer, sort_keys=True).encode()).hexdigest(),
    }


def _begun(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the same harvest at `path`; None if nothing is there."""
    found = _read_manifest(path)
    if found is None:
        if path.exists() and any(not f.name.startswith(".tmp-") for f in path.iterdir()):
            raise ValueError(
                f"'{path}' holds other files and no {MANIFEST}; give a new or an empty folder."
            )
        return None
    different = []
    for part in ("sources", "windows", "settings"):
        if found[part] != wanted[part]:
            different.append(
                f"  {part}: {json.dumps(found[part])}\n  asked: {json.dumps(wanted[part])}"
            )
    if different:
        raise ValueError(
            f"'{path}' holds other activations than those asked for; give another folder, or "
            "delete this one.\n" + "\n".join(different)
        )
    return found


def _read_manifest(path: Path) -> dict[str, Any] | None:
    file = path / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"'{file}' is damaged ({error}). Restore it from a copy, or delete the folder and "
            "harvest again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"'{file}' does not describe activations of sparsify-crosscoder.")
    if manifest["version"] != VERSION:
        raise ValueError(
            f"'{path}' has version {manifest['version']} of the format, this program reads version "
            f"{VERSION}; harvest again, or use the program that wrote it."
        )
    return manifest


def _load_windows(path: Path) -> Dataset:
    try:
        windows = load_from_disk(str(path / WINDOWS))
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path / WINDOWS, str(error)) from error
    assert isinstance(windows, Dataset)
    return windows


def _is_whole(path: Path, manifest: dict[str, Any] | None, number: int) -> bool:
    if manifest is None or number >= len(manifest["shards"]):
        return False
    shard = manifest["shards"][number]
    file = path / shard["file"]
    return file.exists() and file.stat().st_size == shard["bytes"]


def _shard_bounds(num_pairs: np.ndarray, shard_pairs: int) -> list[tuple[int, int]]:
    """Windows [start, stop) of each shard: as many as bring it to `shard_pairs` pairs."""
    bounds, start, pairs = [], 0, 0
    for window, count in enumerate(num_pairs.tolist()):
        pairs += count
        if pairs >= shard_pairs:
            bounds.append((start, window + 1))
            start, pairs = window + 1, 0
    if pairs:
        bounds.append((start, len(num_pairs)))
    return bounds


def _check_room(path: Path, pairs: int, widths: list[int], dtype: torch.dtype) -> None:
    needed = pairs * (sum(widths) * dtype.itemsize + 8)
    free = shutil.disk_usage(path).free
    if needed > free:
        raise ValueError(
            f"The activations still missing in '{path}' take {needed / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free there. Use fewer texts, or another disk."
        )


def _write_shard(
    file: Path, activations: list[Tensor], origin: Tensor, dtype: torch.dtype
) -> dict[str, Any]:
    tensors = {"window": origin[:, 0].int(), "pair": origin[:, 1].int()}
    for s, x in enumerate(activations):
        tensors[f"activations_{s}"] = x.to("cpu", dtype)
        if not tensors[f"activations_{s}"].isfinite().all():
            raise ValueError(
                f"Activations of source {s} are too large for {dtype}; store them as bfloat16 or "
                "float32."
            )
    with atomic_path(file) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
        return {
            "file": file.name,
            "rows": len(origin),
            "bytes": temporary.stat().st_size,
            "sha256": _hash_file(temporary),
        }


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _hash_windows(windows: Dataset) -> str:
    """Checksum of a windows dataset's contents, whatever its chunks, cache file or indices are."""
    digest = hashlib.sha256()
    for name, values in _columns(windows):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _columns(windows: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    for batch in windows.with_format("arrow").iter(4096):
        table: Any = batch
        for name in sorted(table.column_names):
            column = table.column(name).combine_chunks()
            if hasattr(column, "flatten") and hasattr(column, "value_lengths"):
                yield f"{name} lengths", column.value_lengths().to_numpy(zero_copy_only=False)
                column = column.flatten()
            yield name, column.to_numpy(zero_copy_only=False)


def _damaged(file: Path, reason: str) -> ValueError:
    return ValueError(
        f"'{file}' is damaged: {reason}. Delete it and run the same harvest again, which makes it "
        "anew, or restore it from a copy."
    )
