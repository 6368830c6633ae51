"""Latent activations in delphi's own files, written straight from sparse codes.

delphi keeps activations of a dense `[batch, ctx_len, num_latents]` tensor. Here a code's entries go
to disk as they are, in parts, and delphi's splits are put together from the parts at the end.

T tokens of the source on which latents are shown, N pairs of a part, E entries, M latents. Memory
grows with E / n_splits of a part and with M.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.files import atomic_path, atomic_write_json, remove_leftovers
from sparsify_crosscoder.records import read_json, reading

from .cache_parts import PART_TENSORS, Part
from .latent_statistics import LatentStatistics
from .tensor_file import TensorFile

COUNTED_AT_ONCE = 2**20  # entries
SMALLEST = 1e-5  # delphi keeps no activation below
_SETTINGS = "settings.json"
_STATISTICS = "statistics/latents.safetensors"  # delphi takes all beside its own for splits


class _Finished(TypedDict):
    """What config.json says beside delphi's settings."""

    num_parts: int
    n_tokens: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class CacheLayout:
    """What the files of a cache look like."""

    hookpoint: str
    """The module's name as delphi spells it, with the model's own prefix: `model.layers.15`."""

    num_latents: int
    ctx_len: int = 256
    """Tokens of each row; rows are cut from one stream of tokens, as delphi has them."""

    n_splits: int = 5
    """Files that the latents are divided among."""

    def __post_init__(self):
        for name in ("num_latents", "ctx_len", "n_splits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.n_splits > self.num_latents:
            raise ValueError(f"{self.num_latents} latents cannot be split {self.n_splits} ways.")

    @property
    def bounds(self) -> np.ndarray:
        """First latent of each split, and M behind the last: delphi's own division."""
        return torch.linspace(0, self.num_latents, self.n_splits + 1).long().numpy()

    @property
    def files(self) -> list[str]:
        """Names of the splits' files."""
        ends = pairwise(self.bounds.tolist())
        return [f"{start}_{stop - 1}.safetensors" for start, stop in ends]


class LatentCacheWriter:
    """Writes sparse codes into delphi's cache files, part by part.

    `folder` is delphi's raw directory; the files are in `<folder>/<hookpoint>`. Parts that were
    written stay when the process is killed: `num_parts` says how many, and the next part to `add`
    is that one. `settings` describe where the codes come from. Raises ValueError if the folder
    holds a cache of other settings.
    """

    def __init__(
        self,
        folder: Path | str,
        layout: CacheLayout,
        settings: dict[str, Any] | None = None,
        latents: Tensor | None = None,
    ):
        self.folder = Path(folder) / layout.hookpoint
        self.layout = layout
        self.wanted: np.ndarray | None = None
        if latents is not None:
            self.wanted = np.zeros(layout.num_latents, dtype=bool)
            self.wanted[_checked(latents, layout.num_latents)] = True
        chosen = None if latents is None else sorted(set(latents.tolist()))
        state = {**asdict(layout), "latents": chosen, **(settings or {})}
        self._settings = json.loads(json.dumps(state))
        self.num_parts, self.num_tokens = 0, 0
        self._statistics: LatentStatistics | None = None
        self.finished = False
        if (self.folder / "config.json").exists():
            self._open_finished()
        elif (self._parts / _SETTINGS).exists():
            self._open()
        else:
            atomic_write_json(self._parts / _SETTINGS, self._settings)

    @property
    def statistics(self) -> LatentStatistics:
        """Of all activations, also those behind the last whole row.

        Raises ValueError before the cache is finished.
        """
        if self._statistics is None:
            raise ValueError(f"The cache in '{self.folder}' is not finished; finish it first.")
        return self._statistics

    @property
    def _remedy(self) -> str:
        return f"Delete the folder '{self.folder}', and the cache is made anew."

    @property
    def _parts(self) -> Path:
        return self.folder / "parts"

    def _part(self, number: int) -> Path:
        return self._parts / f"{number}.safetensors"

    def _open(self) -> None:
        self._compare(read_json(self._parts / _SETTINGS, dict, self._remedy))
        remove_leftovers(self._parts)
        remove_leftovers(self.folder)  # delphi would take a half written split for one
        while (path := self._part(self.num_parts)).exists():
            remedy = "Delete it and those with higher numbers, which are then made anew."
            with reading(path, remedy), safe_open(path, "np") as file:
                if missing := PART_TENSORS - set(file.keys()):
                    raise KeyError(", ".join(sorted(missing)))
                self.num_tokens += file.get_slice("tokens").get_shape()[0]
            self.num_parts += 1

    def _open_finished(self) -> None:
        config = read_json(self.folder / "config.json", _Finished, self._remedy)
        statistics = LatentStatistics.load(self.folder / _STATISTICS, self.layout.num_latents)
        self._compare(config.get("settings", {}))
        self._settings = config["settings"]
        shutil.rmtree(self._parts, ignore_errors=True)  # if the process was killed just then
        self.finished = True
        self._statistics = statistics
        self.num_parts, self.num_tokens = config["num_parts"], config["n_tokens"]

    def _compare(self, found: dict[str, Any]) -> None:
        # A coder without a name is known by its weights: its run may have been renamed.
        ignored = {"coder"} - self._settings.keys()
        keys = sorted({*found, *self._settings} - ignored)
        different = [k for k in keys if found.get(k) != self._settings.get(k)]
        if different:
            raise ValueError(
                f"'{self.folder}' holds a latent cache with other settings "
                f"({', '.join(different)}). Choose another folder, or delete this one."
            )

    def add(
        self, code: SparseCode, tokens: Tensor, positions: Tensor, windows: Tensor, pairs: Tensor
    ) -> None:
        """Write one part: a code over N pairs, in the order of their tokens.

        `tokens` [T] are the part's tokens, `positions` [N] says at which of them each pair is;
        `windows` [N] and `pairs` [N] which window of the text it is from, and its number in it.
        """
        if self.finished:
            raise ValueError(f"The cache in '{self.folder}' is finished; nothing can be added.")
        if code.shape[1] != self.layout.num_latents:
            raise ValueError(
                f"A code over {code.shape[1]} latents cannot go into a cache of "
                f"{self.layout.num_latents}."
            )
        acts, latents, rows = (
            x.detach().cpu().numpy() for x in (code.acts.float(), code.indices, code.rows)
        )
        kept = np.abs(acts) > SMALLEST
        if self.wanted is not None:
            kept &= self.wanted[latents]
        if not kept.all():
            acts, latents, rows = acts[kept], latents[kept], rows[kept]
        offsets = positions.cpu().numpy()[rows]
        bounds = self.layout.bounds
        split = np.searchsorted(bounds, latents, side="right") - 1
        # delphi's order in a split: by token, then by latent.
        key = (split * len(tokens) + offsets) * self.layout.num_latents + latents
        order = np.argsort(key)
        starts = np.cumsum([0, *np.bincount(split, minlength=self.layout.n_splits)])
        with atomic_path(self._part(self.num_parts)) as temporary:
            save_file(
                {
                    "tokens": tokens.cpu().numpy().astype(np.int32),
                    "offsets": offsets[order].astype(np.int32),
                    "latents": latents[order].astype(np.int32),
                    "activations": acts[order],
                    "starts": starts.astype(np.int64),
                    "positions": positions.cpu().numpy().astype(np.int32),
                    "windows": windows.cpu().numpy().astype(np.int32),
                    "pairs": pairs.cpu().numpy().astype(np.int32),
                },
                temporary,
            )
        self.num_parts += 1
        self.num_tokens += len(tokens)

    def finish(self, config: dict[str, Any]) -> None:
        """Sort the parts into delphi's splits and remove them.

        `config` are delphi's settings of a cache, with `model_name`. The tokens behind the last
        whole row are dropped, as delphi does. Raises ValueError if there is no whole row.
        """
        if self.finished:
            return
        num_rows = self.num_tokens // self.layout.ctx_len
        if not num_rows:
            raise ValueError(
                f"{self.num_tokens} tokens make no whole row of {self.layout.ctx_len}: give more "
                f"text or a shorter ctx_len."
            )
        self._statistics = LatentStatistics.empty(self.layout.num_latents)
        for split in range(self.layout.n_splits):
            self._write_split(split, num_rows)
        (self.folder / _STATISTICS).parent.mkdir(exist_ok=True)
        self._statistics.save(self.folder / _STATISTICS)
        facts = {"n_tokens": self.num_tokens, "num_parts": self.num_parts}
        facts |= {"ctx_len": self.layout.ctx_len, "settings": self._settings}
        atomic_write_json(self.folder / "config.json", {**config, **facts})
        self.finished = True
        shutil.rmtree(self._parts, ignore_errors=True)

    def _write_split(self, split: int, num_rows: int) -> None:
        """Put a split's file together part by part, and count its latents' activations."""
        ctx_len, start = self.layout.ctx_len, int(self.layout.bounds[split])
        width = int(self.layout.bounds[split + 1]) - start
        length = num_rows * ctx_len
        sizes, last, widest = [], 0, 0
        for first, part in self._parts_with_first_token():
            offsets = part.slice("offsets", split)
            inside = int(np.searchsorted(offsets, length - first))
            sizes.append(inside)
            if inside:
                last = first + int(offsets[inside - 1])
                if width > 2**16:
                    widest = max(widest, int(part.slice("latents", split)[:inside].max()) - start)
        small = max(last // ctx_len, widest) < 2**16
        kind = np.dtype(np.uint16 if small else np.uint32)
        total = sum(sizes)
        layout = {
            "tokens": (np.dtype(np.int64), (num_rows, ctx_len)),
            "locations": (kind, (total, 3)),
            "activations": (np.dtype(np.float16), (total,)),
        }
        with (
            atomic_path(self.folder / self.layout.files[split]) as temporary,
            TensorFile(temporary, layout) as file,
        ):
            counted: list[Sequence[np.ndarray]] = []
            for (first, part), inside in zip(self._parts_with_first_token(), sizes, strict=True):
                offsets, latents, acts = (
                    part.slice(name, split) for name in ("offsets", "latents", "activations")
                )
                counted.append(self._places(part, offsets, latents, acts))
                if sum(len(one[0]) for one in counted) >= COUNTED_AT_ONCE:
                    self._count(counted)
                token = offsets[:inside].astype(np.int64) + first
                row = token // ctx_len  # several times as fast as divmod
                locations = np.empty((inside, 3), dtype=kind)
                locations[:, 0] = row
                locations[:, 1] = token - row * ctx_len
                locations[:, 2] = latents[:inside] - start
                file.append("locations", locations)
                file.append("activations", acts[:inside].astype(np.float16))
                tokens = part.read("tokens")[: max(length - first, 0)]
                file.append("tokens", tokens.astype(np.int64))
            self._count(counted)

    def _places(
        self, part: Part, offsets: np.ndarray, latents: np.ndarray, acts: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Latent, activation, window and pair of entries `[E]`."""
        positions = part.read("positions")
        window_at, pair_at = np.empty((2, int(positions.max(initial=-1)) + 1), dtype=np.int32)
        window_at[positions], pair_at[positions] = part.read("windows"), part.read("pairs")
        return latents, acts, window_at[offsets], pair_at[offsets]

    def _count(self, counted: list[Sequence[np.ndarray]]) -> None:
        if counted:
            self.statistics.update(*(np.concatenate(x) for x in zip(*counted, strict=True)))
            counted.clear()

    def _parts_with_first_token(self) -> Iterator[tuple[int, Part]]:
        first = 0
        for number in range(self.num_parts):
            with safe_open(self._part(number), "np") as file:
                part = Part(file)
                yield first, part
                first += len(part.read("tokens"))


def _checked(latents: Tensor, num_latents: int) -> np.ndarray:
    chosen = latents.cpu().numpy()
    if chosen.size and (chosen.min() < 0 or chosen.max() >= num_latents):
        raise ValueError(f"There are latents 0..{num_latents - 1}, not all of {chosen.tolist()}.")
    return chosen
