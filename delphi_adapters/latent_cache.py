"""Latent activations in delphi's own files, written straight from sparse codes.

delphi keeps activations of a dense `[batch, ctx_len, num_latents]` tensor. Here a code's entries go
to disk as they are, in parts, and the parts are sorted into delphi's splits at the end, so memory
does not depend on the number of latents.

T tokens of the source on which latents are shown, N pairs of a part, E entries, M latents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.files import atomic_path, atomic_write_json

SMALLEST = 1e-5  # delphi keeps no activation below
NUM_CONTEXTS = 10
_PARTS, _STATE = "parts", "state.json"
_STATISTICS = "statistics/latents.safetensors"  # delphi takes all beside its own for splits


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


@dataclass
class LatentStatistics:
    """What the cache knows of every latent beside its activations, `[M]` each."""

    firings: np.ndarray
    """Pairs on which it fires."""

    max_activation: np.ndarray
    """Its largest activation, in float32: the s_max of steering (B.5)."""

    context_activations: np.ndarray
    """Its strongest activations, at most one from a window, `[M, C]`, 0 where it has fewer."""

    context_pairs: np.ndarray
    """Where these are: window and number of the pair in it, `[M, C, 2]`; -1 where it has fewer."""

    @property
    def dead(self) -> np.ndarray:
        """Whether a latent never fires."""
        return self.firings == 0

    @classmethod
    def empty(cls, num_latents: int, num_contexts: int = NUM_CONTEXTS) -> LatentStatistics:
        return cls(
            np.zeros(num_latents, dtype=np.int64),
            np.zeros(num_latents, dtype=np.float32),
            np.zeros((num_latents, num_contexts), dtype=np.float32),
            np.full((num_latents, num_contexts, 2), -1, dtype=np.int64),
        )

    def update(
        self, latents: np.ndarray, acts: np.ndarray, windows: np.ndarray, pairs: np.ndarray
    ) -> None:
        """Add entries `[E]` of new windows: latent, activation, window and pair in it."""
        if not len(latents):
            return
        self.firings += np.bincount(latents, minlength=len(self.firings))
        order = np.lexsort((pairs, windows, -acts, latents))
        latents, acts, windows, pairs = (x[order] for x in (latents, acts, windows, pairs))
        first = np.flatnonzero(np.diff(latents, prepend=-1))
        present = latents[first]
        self.max_activation[present] = np.maximum(self.max_activation[present], acts[first])

        # The strongest of each window, then the first C of each latent.
        _, kept = np.unique(np.stack([latents, windows]), axis=1, return_index=True)
        kept.sort()
        starts = np.searchsorted(latents[kept], present)
        place = np.arange(len(kept)) - np.repeat(starts, np.diff([*starts, len(kept)]))
        count = self.context_activations.shape[1]
        kept, place = kept[place < count], place[place < count]
        new_acts = np.zeros((len(present), count), dtype=np.float32)
        new_pairs = np.full((len(present), count, 2), -1, dtype=np.int64)
        row = np.searchsorted(present, latents[kept])
        new_acts[row, place] = acts[kept]
        new_pairs[row, place] = np.stack([windows[kept], pairs[kept]], axis=1)

        acts = np.concatenate([self.context_activations[present], new_acts], axis=1)
        where = np.concatenate([self.context_pairs[present], new_pairs], axis=1)
        best = np.argsort(-acts, axis=1, kind="stable")[:, :count]
        self.context_activations[present] = np.take_along_axis(acts, best, 1)
        self.context_pairs[present] = np.take_along_axis(where, best[:, :, None], 1)

    def save(self, path: Path) -> None:
        """Write all to a safetensors file, whole or not at all."""
        with atomic_path(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> LatentStatistics:
        return cls(**load_file(path))


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
        self.statistics = LatentStatistics.empty(layout.num_latents)
        self.finished = False
        if (self._parts / _STATE).exists():
            self._open()
        elif (self.folder / "config.json").exists():
            self._open_finished()
        else:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._write_state()

    @property
    def _parts(self) -> Path:
        return self.folder / _PARTS

    def _open(self) -> None:
        state = json.loads((self._parts / _STATE).read_text())
        self._compare(state["settings"])
        self.num_parts, self.num_tokens = state["num_parts"], state["num_tokens"]
        if self.num_parts:
            self.statistics = LatentStatistics.load(self._statistics_of(self.num_parts))

    def _open_finished(self) -> None:
        config = json.loads((self.folder / "config.json").read_text())
        self._compare(config.get("settings", {}))
        self.finished = True
        self.statistics = LatentStatistics.load(self.folder / _STATISTICS)
        self.num_parts, self.num_tokens = config["num_parts"], config["n_tokens"]

    def _compare(self, found: dict[str, Any]) -> None:
        keys = sorted({*found, *self._settings})
        different = [k for k in keys if found.get(k) != self._settings.get(k)]
        if different:
            raise ValueError(
                f"'{self.folder}' holds a latent cache with other settings "
                f"({', '.join(different)}). Choose another folder, or delete this one."
            )

    def _statistics_of(self, num_parts: int) -> Path:
        # Two take turns, so that the one that the state names is always whole.
        return self._parts / f"statistics_{num_parts % 2}.safetensors"

    def _write_state(self) -> None:
        state = {
            "settings": self._settings,
            "num_parts": self.num_parts,
            "num_tokens": self.num_tokens,
        }
        atomic_write_json(self._parts / _STATE, state)

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
        acts, latents, rows = acts[kept], latents[kept], rows[kept]
        offsets = positions.cpu().numpy()[rows]
        bounds = self.layout.bounds
        split = np.searchsorted(bounds, latents, side="right") - 1
        # delphi's order in a split: by token, then by latent.
        order = np.lexsort((latents, offsets, split))
        starts = np.searchsorted(split[order], np.arange(len(bounds)))
        with atomic_path(self._parts / f"{self.num_parts}.safetensors") as temporary:
            save_file(
                {
                    "tokens": tokens.cpu().numpy().astype(np.int32),
                    "offsets": offsets[order].astype(np.int64),
                    "latents": latents[order].astype(np.int32),
                    "activations": acts[order].astype(np.float16),
                    "starts": starts.astype(np.int64),
                },
                temporary,
            )
        self.statistics.update(
            latents, acts, windows.cpu().numpy()[rows], pairs.cpu().numpy()[rows]
        )
        self.statistics.save(self._statistics_of(self.num_parts + 1))
        self.num_parts += 1
        self.num_tokens += len(tokens)
        self._write_state()

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
        length = num_rows * self.layout.ctx_len
        tokens = [self._read(p, "tokens") for p in range(self.num_parts)]
        firsts = np.cumsum([0, *map(len, tokens)])
        rows_of_tokens = np.concatenate(tokens)[:length].reshape(num_rows, self.layout.ctx_len)
        for split, name in enumerate(self.layout.files):
            pieces = [self._split_of(p, split, int(firsts[p])) for p in range(self.num_parts)]
            offsets, latents, acts = (np.concatenate(x) for x in zip(*pieces, strict=True))
            inside = offsets < length
            row, position = np.divmod(offsets[inside], self.layout.ctx_len)
            latents = latents[inside] - self.layout.bounds[split]
            locations = np.stack([row, position, latents], axis=1)
            small = locations.size == 0 or locations[:, [0, 2]].max() < 2**16
            with atomic_path(self.folder / name) as temporary:
                save_file(
                    {
                        "locations": locations.astype(np.uint16 if small else np.uint32),
                        "activations": acts[inside],
                        "tokens": rows_of_tokens.astype(np.int64),
                    },
                    temporary,
                )
        (self.folder / _STATISTICS).parent.mkdir(exist_ok=True)
        self.statistics.save(self.folder / _STATISTICS)
        facts = {"n_tokens": self.num_tokens, "num_parts": self.num_parts}
        facts |= {"ctx_len": self.layout.ctx_len, "settings": self._settings}
        atomic_write_json(self.folder / "config.json", {**config, **facts})
        self.finished = True
        for file in self._parts.iterdir():
            file.unlink()
        self._parts.rmdir()

    def _read(self, part: int, name: str) -> np.ndarray:
        with safe_open(self._parts / f"{part}.safetensors", "np") as file:
            return file.get_tensor(name)

    def _split_of(self, part: int, split: int, first_token: int) -> Sequence[np.ndarray]:
        with safe_open(self._parts / f"{part}.safetensors", "np") as file:
            start, stop = file.get_tensor("starts")[split : split + 2].tolist()
            offsets, latents, acts = (
                file.get_slice(name)[start:stop] for name in ("offsets", "latents", "activations")
            )
        return offsets + first_token, latents, acts


def _checked(latents: Tensor, num_latents: int) -> np.ndarray:
    chosen = latents.cpu().numpy()
    if chosen.size and (chosen.min() < 0 or chosen.max() >= num_latents):
        raise ValueError(f"There are latents 0..{num_latents - 1}, not all of {chosen.tolist()}.")
    return chosen
