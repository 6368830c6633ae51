"""Activations on disk: harvested once, read at random.

A store is a folder:

    manifest.json               what the store is
    windows_000/                the windows of its first part (`Dataset.save_to_disk`)
    shard_000000.safetensors    the pairs of consecutive windows, in the windows' order
    shard_000001.safetensors    (see `shards`; a shard ends with the text that fills it)
    ...

manifest.json:

    format      "sparsify-crosscoder activations"
    version     2
    sources     per source: name, revision (the hub's commit), hookpoint, width, dtype of the model,
                digest of its weights in that dtype ("sampled": of some of their values, as earlier
                versions took it), digest of its checkpoint's files, sha256 of the tokenizer
    parts       one for each harvest, all further ones appended or merged:
      complete      whether every shard is there
      windows       count, pairs, sha256 of the contents, and of who said and wrote them ("notes",
                    which parts of earlier versions do not have)
      settings      batch_size, shard_pairs, dtype of the activations, and the columns beside them,
                    if there are any (`harvest.divergence`)
      origin        options that say which texts these are, or null
      first_text    what was added to the numbers of its texts, so that all parts' differ
      first_shard   number of its first shard
      shards        per shard: file, rows, bytes, sha256

While a part is unfinished, each shard that is whole has its entry in a file of its own
(shard_000000.json), written after the shard. Shards are never changed, only replaced as a whole,
and nothing depends on when, how fast, by how many processes or in how many attempts they were
written.

Of every pair the windows have the text, the characters of it that the pair stands for, each
model's tokens, and in conversations who said it and which model wrote it (`ActivationStore.notes`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..harvest.report import HarvestReport
from ..harvest.source import Source
from ..hashing import hash_file
from ..text.roles import Role
from ..text.window_numbers import window_numbers
from .dtypes import get_dtype
from .manifest import MANIFEST, column_names, read_manifest
from .merging import drop_unfinished, merge_stores
from .order import split_windows
from .pair_notes import PairNotes, WindowNotes
from .part_windows import (
    hash_notes,
    hash_windows,
    join_windows,
    load_part_windows,
    shift_texts,
    windows_name,
)
from .shard_notes import is_whole, shard_name
from .shards import Shard, damaged, num_checked_blocks
from .stored_rows import StoredRows, join_rows
from .writing import harvest_into

# A mapped file counts as memory of the process, in the worst case all of it.
_MAPPED_AT_ONCE = 2**27


@dataclass
class StoredPair:
    """Where a pair comes from."""

    window: int
    """Row of the store's windows."""

    text_id: int
    """Which text; of the dataset it came from, where the store has one part."""

    dataset: str | None
    """The dataset that the text is from."""

    characters: tuple[int, int]
    """The characters of the text that the pair stands for."""

    token_ids: list[int]
    """Each model's token at which the activation was read."""

    position: int
    """Number of the pair in its window."""


class ActivationStore:
    """Activation pairs in a folder, numbered in the order of its windows.

    Made by `ActivationStore.create`, `open` or `merge`.
    """

    def __init__(self, path: str | Path, manifest: dict[str, Any], report: HarvestReport):
        self.path = Path(path)
        self.manifest = manifest
        self.report = report
        """What `create` read just now, in this process; empty if everything was there already."""
        noted = ["notes" in part["windows"] for part in manifest["parts"]]
        self.windows: Dataset = join_windows(
            [load_part_windows(self.path, part) for part in range(len(noted))], noted
        )
        """The windows of all parts, one after the other."""
        self.window_notes = WindowNotes(self.windows, Role.PLAIN if all(noted) else Role.UNKNOWN)
        """Who said and wrote what the pairs stand for, by window and position."""
        self._shards: list[dict[str, Any]] = [s for p in manifest["parts"] for s in p["shards"]]
        self._ends = torch.tensor([shard["rows"] for shard in self._shards]).cumsum(0)
        self._window_ends = np.cumsum(window_numbers(self.windows, "num_pairs"))
        self._checked = [np.zeros(num_checked_blocks(s["rows"]), bool) for s in self._shards]
        self._dtype = get_dtype(self.dtype)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = Lock()
        if len(self) != self._window_ends[-1]:
            raise damaged(
                self.path / MANIFEST,
                f"its shards hold {len(self):,} pairs, its windows {self._window_ends[-1]:,}",
            )

    @classmethod
    def create(
        cls,
        path: str | Path,
        sources: Sequence[Source],
        windows: Dataset,
        *,
        batch_size: int,
        shard_pairs: int | None = None,
        dtype: str = "bfloat16",
        append: bool = False,
        origin: dict[str, Any] | None = None,
    ) -> ActivationStore:
        """Harvest all windows into the folder `path`, or finish or open what is there already.

        A harvest that was killed goes on where it stopped and ends with the same bytes; shards
        that were damaged are harvested again. In a distributed run every rank calls this and
        writes its share of the shards. `dtype` is one of `dtypes`: bfloat16, float16, float32, int8
        with a scale for each row and each dimension, or another package's. `shard_pairs` are as
        many as make 256 MB, at most 65,536, by default. With `append`, windows that a complete
        store does not have are added to it; if the store's are the beginning of those given, the
        others.
        `origin` says in the manifest where the texts are from.

        Raises ValueError if the folder holds anything else, if another process writes to it or the
        disk has too little room (nothing is changed then), and as `harvest_windows` does; OSError
        if the disk becomes full.
        """
        path = Path(path)
        report = harvest_into(
            path,
            sources,
            windows,
            batch_size=batch_size,
            shard_pairs=shard_pairs,
            dtype=dtype,
            append=append,
            origin=origin,
        )
        store = cls.open(path)
        store.report = report
        return store

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a complete store.

        Raises ValueError if it is no store, of another version, unfinished, or if a shard is
        missing or has the wrong size. Damage that leaves the size as it is shows when the damaged
        pairs are read, or by `verify`.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise ValueError(f"'{path}' holds no activations: there is no {MANIFEST} in it.")
        for number, part in enumerate(manifest["parts"]):
            if part["complete"]:
                continue
            begun = len(list(path.glob("shard_*.json")))
            what = "What was being added to" if number else "The harvest into"
            drop = f" `sparsify-crosscoder store {path} --drop_unfinished` gives it up."
            raise ValueError(
                f"{what} '{path}' is unfinished ({begun} shards written). Run the same harvest "
                f"again: it goes on where it stopped.{drop if number else ''}"
            )
        for shard in (shard for part in manifest["parts"] for shard in part["shards"]):
            if not is_whole(path, shard):
                file = path / shard["file"]
                size = f"has {file.stat().st_size:,} bytes" if file.exists() else "is missing"
                raise damaged(file, f"it {size}, its size was {shard['bytes']:,} bytes")
        return cls(path, manifest, HarvestReport())

    @classmethod
    def merge(cls, path: str | Path, stores: Sequence[str | Path]) -> ActivationStore:
        """Join stores of the same sources and dtype into a new one at `path`.

        Stores of different texts come one after the other. Unfinished ones of the same harvest, as
        machines without a common disk write them, complete each other. Files are linked where that
        is possible, else copied; every one is checked. Raises ValueError, and leaves nothing at
        `path`, if the stores do not go together, a shard is damaged or in none of them, or `path`
        exists.
        """
        merge_stores(Path(path), [Path(store) for store in stores])
        return cls.open(path)

    @staticmethod
    def drop_unfinished(path: str | Path) -> int:
        """Give up the part that an append left unfinished; returns how many shards it had."""
        return drop_unfinished(Path(path))

    def __len__(self) -> int:
        """Pairs in the store."""
        return int(self._ends[-1])

    @property
    def sources(self) -> list[dict[str, Any]]:
        """`name`, `hookpoint` and `width` of each source, and more that identifies it."""
        return self.manifest["sources"]

    def files(self) -> list[Path]:
        """The files of the store, without what else lies in its folder."""
        folders = [self.path / windows_name(part) for part in range(len(self.manifest["parts"]))]
        windows = [file for folder in folders for file in sorted(folder.iterdir())]
        return [self.path / MANIFEST, *windows, *(self.path / s["file"] for s in self._shards)]

    @property
    def d_sources(self) -> list[int]:
        """Width of each source."""
        return [source["width"] for source in self.sources]

    @property
    def dtype(self) -> str:
        """What activations are kept in, such as bfloat16 or int8."""
        return self.manifest["parts"][0]["settings"]["dtype"]

    @property
    def column_names(self) -> tuple[str, ...]:
        """What is kept of every pair beside its activations, such as `kl_1_0`."""
        return column_names(self.manifest["parts"][0])

    @property
    def num_shards(self) -> int:
        """Files that hold the pairs."""
        return len(self._shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for shard in self._shards)

    def rows(self, index: Tensor) -> list[Tensor]:
        """The pairs numbered `index` [n], in its order: one [n, d_s] tensor per source.

        They have the store's dtype, float32 if that is int8. Shards are memory-mapped, so only the
        rows asked for are read; at most 128 MB of them are mapped at a time, or one. Raises
        IndexError for numbers outside of the store, ValueError for pairs that are damaged.
        """
        return self.stored_rows(index).decode()

    def stored_rows(self, index: Tensor) -> StoredRows:
        """The same pairs as they are stored."""
        index = index.long().contiguous()
        order, here = self._by_shard(index)
        parts = [self._read(number, index[places]) for number, places in here]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return self._read(0, index)
        return join_rows(parts, len(index)).at(order.argsort())

    def columns(self, index: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Columns of the pairs numbered `index` [n], in its order: [n] float32 each, by name.

        All of `column_names` if `names` is left out. Raises ValueError for a column that the store
        does not have, otherwise as `rows`.
        """
        names = self.column_names if names is None else names
        for name in names:
            if name not in self.column_names:
                raise ValueError(
                    f"The store '{self.path}' has no column {name!r} (it has "
                    f"{', '.join(self.column_names) or 'none'}): harvest it with --kl on."
                )
        index = index.long().contiguous()
        found = {name: torch.empty(len(index)) for name in names}
        for number, places in self._by_shard(index)[1]:
            with self._lock:
                shard, rows = self._shard(number), index[places] - self._start(number)
                for name in names:
                    found[name][places] = shard.read_column(name, rows)
        return found

    def _by_shard(self, index: Tensor) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """An order [n] of `index` by shard, and the places of it that are in each shard."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"The pairs of this store are numbered 0 to {len(self) - 1}.")
        shard_of = torch.searchsorted(self._ends, index, right=True)
        numbers, places = shard_of.unique(return_inverse=True)
        order = places.argsort(stable=True)
        here = order.split(places.bincount(minlength=len(numbers)).tolist())
        return order, list(zip(numbers.tolist(), here, strict=True))

    def _start(self, number: int) -> int:
        """The number of a shard's first pair."""
        return int(self._ends[number]) - self._shards[number]["rows"]

    def _read(self, number: int, index: Tensor) -> StoredRows:
        """The pairs `index` of the store, all of them in one shard."""
        with self._lock:
            return self._shard(number).read(index - self._start(number))

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(
                self.path / self._shards[number]["file"], self._dtype, self._checked[number]
            )
        self._open.move_to_end(number)
        while len(self._open) > 1 and self._mapped() > _MAPPED_AT_ONCE:
            self._open.popitem(last=False)
        return self._open[number]

    def _mapped(self) -> int:
        return sum(self._shards[number]["bytes"] for number in self._open)

    def provenance(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Window (row of `windows`) and number in the window of each pair, int64 [n] both."""
        numbers = index.numpy()
        window = np.searchsorted(self._window_ends, numbers, side="right")
        counts = np.diff(self._window_ends, prepend=0)
        pair = numbers - (self._window_ends - counts)[window]
        return torch.from_numpy(window), torch.from_numpy(pair)

    def notes(self, index: Tensor) -> PairNotes:
        """Where the pairs numbered `index` [n] come from, who said them and which model wrote them.

        Pairs of an earlier version's harvest have the role `Role.UNKNOWN`.
        """
        return self.window_notes.at(*self.provenance(index))

    def pair(self, number: int) -> StoredPair:
        """Which text a pair is from, where in it, and which tokens; IndexError if there is none."""
        if not 0 <= number < len(self):
            raise IndexError(f"The pairs of this store are numbered 0 to {len(self) - 1}.")
        window, position = (int(x) for x in self.provenance(torch.tensor([number])))
        row = self.windows[window]
        labels = self.windows.features.get("dataset")
        return StoredPair(
            window,
            row["text_id"],
            None if labels is None else labels.int2str(row["dataset"]),
            (row["starts"][position], row["ends"][position]),
            [
                row[f"input_ids_{s}"][row[f"pairs_{s}"][position]]
                for s in range(len(self.d_sources))
            ],
            position,
        )

    def split(self, held_out_pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Rows of `windows` to train on and to hold out: whole texts, as `split_windows` says."""
        return split_windows(self.windows, held_out_pairs, seed)

    def verify(self) -> None:
        """Read everything and compare checksums; raises ValueError naming the first damaged."""
        for number, part in enumerate(self.manifest["parts"]):
            windows = shift_texts(load_part_windows(self.path, number), -part["first_text"])
            notes = part["windows"].get("notes")
            whole = hash_windows(windows) == part["windows"]["sha256"]
            if not whole or notes not in (None, hash_notes(windows)):
                raise damaged(
                    self.path / windows_name(number), "its contents do not match their checksum"
                )
        for number, shard in enumerate(tqdm(self._shards, desc="Verifying", unit=" shards")):
            file = self.path / shard["file"]
            if shard["file"] != shard_name(number) or hash_file(file) != shard["sha256"]:
                raise damaged(file, "its contents do not match their checksum")
