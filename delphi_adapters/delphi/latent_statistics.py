"""What a latent cache knows of every latent beside its activations: counts, maxima, contexts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sparsify_crosscoder.files import atomic_path
from sparsify_crosscoder.records import reading

NUM_CONTEXTS = 10


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
            np.full((num_latents, num_contexts, 2), -1, dtype=np.int32),
        )

    def update(
        self, latents: np.ndarray, acts: np.ndarray, windows: np.ndarray, pairs: np.ndarray
    ) -> None:
        """Add entries `[E]` of new windows: latent, activation, window and pair in it.

        Entries of one latent come in the order of the text; of equal activations the first counts.
        """
        if not len(latents):
            return
        self.firings += np.bincount(latents, minlength=len(self.firings))
        np.maximum.at(self.max_activation, latents, acts)
        # Few can be among the strongest once some text is in.
        new = acts > self.context_activations[:, -1][latents]
        if not new.all():
            latents, acts, windows, pairs = (x[new] for x in (latents, acts, windows, pairs))
        if len(latents):
            self._add_contexts(latents, acts, windows, pairs)

    def _add_contexts(
        self, latents: np.ndarray, acts: np.ndarray, windows: np.ndarray, pairs: np.ndarray
    ) -> None:
        span = int(np.ptp(windows)) + 1
        new = _strongest_of_each(latents.astype(np.int64) * span + (windows - windows.min()), acts)
        new_latents, new_acts = latents[new].astype(np.int64), acts[new]

        # With those that were there before, which come first among equals.
        count = self.context_activations.shape[1]
        present = new_latents[np.flatnonzero(np.diff(new_latents, prepend=-1))]
        rows, columns = np.nonzero(self.context_activations[present])
        old = present[rows]
        joined = np.concatenate([old, new_latents])
        values = np.concatenate([self.context_activations[old, columns], new_acts])
        order = _strongest_first(joined, values)
        joined = joined[order]
        starts = np.flatnonzero(np.diff(joined, prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        best = np.flatnonzero(rank < count)
        rank, joined, order = rank[best], joined[best], order[best]

        was, is_new = order[order < len(old)], order >= len(old)
        where = np.empty((len(order), 2), dtype=np.int32)
        where[~is_new] = self.context_pairs[old[was], columns[was]]
        entries = new[order[is_new] - len(old)]
        where[is_new, 0], where[is_new, 1] = windows[entries], pairs[entries]
        self.context_activations[joined, rank] = values[order]
        self.context_pairs[joined, rank] = where

    def save(self, path: Path) -> None:
        """Write all to a safetensors file, whole or not at all."""
        with atomic_path(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: Path, num_latents: int | None = None) -> LatentStatistics:
        """What `save` wrote, of so many latents if that is known; Damaged for anything else."""
        cache = path.parents[1]
        try:
            with reading(path, f"Delete the folder '{cache}', and the cache is made anew."):
                found = cls(**load_file(path))
                empty = cls.empty(
                    num_latents or len(found.firings), found.context_activations.shape[-1]
                )
                for name, array in vars(empty).items():
                    held = getattr(found, name)
                    if held.shape != array.shape or held.dtype != array.dtype:
                        raise ValueError(f"{name} is {held.dtype} {list(held.shape)}")
                if not np.isfinite(found.max_activation).all():
                    raise ValueError("an activation is not finite")
                return found
        except FileNotFoundError as error:
            raise ValueError(
                f"'{path}' is missing: delete the folder '{cache}', and the cache is made anew."
            ) from error


def _strongest_of_each(groups: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """Where each group has its largest activation first, in the order of the groups."""
    # Sorting numbers that hold their own place is several times as fast as a stable argsort.
    bits = len(groups).bit_length()
    packed = (groups << bits) | np.arange(len(groups))
    packed.sort()
    order = packed & ((1 << bits) - 1)
    packed >>= bits
    first = np.empty(len(packed), dtype=bool)
    first[0] = True
    np.not_equal(packed[1:], packed[:-1], out=first[1:])
    if first.all():
        return order
    in_order = acts[order]
    starts = np.flatnonzero(first)
    largest = np.maximum.reduceat(in_order, starts)
    segment = np.cumsum(first) - 1
    best = np.flatnonzero(in_order == largest[segment])
    return order[best[np.diff(segment[best], prepend=-1) != 0]]


def _strongest_first(latents: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """What sorts by latent, then by falling positive activation, then by place."""
    # Positive floats are in the order of their bits.
    key = (latents << 31) | (np.int64(2**31 - 1) - acts.view(np.int32))
    order = np.argsort(key)
    key = key[order]
    equal = key[1:] == key[:-1]
    if equal.any():
        tied = np.zeros(len(key), dtype=bool)
        tied[1:] |= equal
        tied[:-1] |= equal
        places = np.flatnonzero(tied)
        order[places] = order[places][np.lexsort((order[places], key[places]))]
    return order
