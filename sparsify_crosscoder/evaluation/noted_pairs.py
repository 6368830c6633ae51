"""Pairs that can be read several times, with what is known of each: its text, and how far the
models' next tokens differ there.

N pairs, S sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..harvest.families import same_family
from ..harvest.harvest import harvest_windows
from ..harvest.model_identity import same_model
from ..runs.models import load_run_sources
from ..runs.pairs import run_store
from ..runs.run import Run
from ..runs.texts import load_windows
from ..store.order import random_numbers
from ..store.pair_notes import PairNotes, WindowNotes
from ..store.store import ActivationStore
from ..store.store_stream import StoreStream
from ..store.stream import ActivationStream
from ..store.tensor_stream import TensorStream
from ..text.roles import Role
from ..text.window_numbers import window_numbers
from .latent_moments import BATCH_PAIRS
from .text_divergence import divergence_of_likelihoods

CHOSEN = 4  # what a random order of windows is for, beside those of `store.order`


class Beside(NamedTuple):
    """Another model in the place of a source, read on the same pairs."""

    source: int
    read: Callable[[Tensor], Tensor]
    """Its raw activations `[n, D]` of the pairs with some numbers `[n]`."""

    kl: Tensor | None = None
    """How far both models' next tokens differ at all pairs, nats, `[N]`, if it is known."""


@dataclass(frozen=True)
class NotedPairs:
    """Pairs of raw activations, in the order of their texts."""

    read: Callable[[Tensor], list[Tensor]]
    """Raw activations `[n, d_s]` per source of the pairs with some numbers `[n]`."""

    numbers: Tensor
    """What `read` knows the pairs by, `[N]`."""

    texts: Tensor
    """Which text each is from, numbers of any kind, `[N]`."""

    roles: Tensor | None = None
    """`text.roles.Role` of each, `[N]`, if known."""

    writers: Tensor | None = None
    """The source that wrote each, -1 for what came with the data set, `[N]`, if known."""

    kl: Tensor | None = None
    """KL divergence of the last source's next token from the first's, nats, `[N]`, if known."""

    ends: Tensor | None = None
    """The character of its text behind which each ends, `[N]`, if known."""

    beside: Beside | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def places(self) -> list[slice]:
        """Places of the chunks in which the pairs are read."""
        starts = range(0, len(self), BATCH_PAIRS)
        return [slice(start, min(start + BATCH_PAIRS, len(self))) for start in starts]

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """All pairs in their order, with their places."""
        for here in self.places():
            yield here, self.read(self.numbers[here])

    def at(self, kept: Tensor) -> NotedPairs:
        """Those at some places, or where a mask is true."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: x[kept] for n, x in known.items() if isinstance(x, Tensor)})


def held_pairs(
    activations: Sequence[Tensor], texts: Tensor | None = None, kl: Tensor | None = None
) -> NotedPairs:
    """Pairs that are in memory, raw `[N, d_s]` per source; each its own text by default."""
    numbers = torch.arange(len(activations[0]))
    texts = numbers if texts is None else texts
    return NotedPairs(lambda index: [x[index] for x in activations], numbers, texts, kl=kl)


def stored_pairs(store: ActivationStore, count: int, seed: int = 0) -> NotedPairs:
    """Some `count` pairs of a store, whole windows of it drawn at random."""
    windows = store.windows
    counts = window_numbers(windows, "num_pairs")
    rows = _some_windows(counts, count, seed)
    chosen = zip((np.cumsum(counts) - counts)[rows].tolist(), counts[rows].tolist(), strict=True)
    numbers = torch.from_numpy(np.concatenate([f + np.arange(n) for f, n in chosen]))
    column = f"kl_{len(store.d_sources) - 1}_0"
    kl = store.columns(numbers)[column] if column in store.column_names else None
    return _noted(store.rows, numbers, store.notes(numbers), kl)


def _noted(
    read: Callable[[Tensor], list[Tensor]],
    numbers: Tensor,
    notes: PairNotes,
    kl: Tensor | None = None,
) -> NotedPairs:
    """Pairs with their notes, without those of templates and system prompts, which all texts share
    and which would lead every list."""
    if not notes.known:
        return NotedPairs(read, numbers, notes.text_id, kl=kl, ends=notes.end)
    said = (notes.role != Role.TEMPLATE) & (notes.role != Role.SYSTEM)
    noted = NotedPairs(read, numbers, notes.text_id, notes.role, notes.writer, kl, notes.end)
    return noted.at(said)


class RunPairs(NamedTuple):
    """The pairs of a run, to be read in both ways."""

    stream: ActivationStream
    """All of them, shuffled."""

    noted: NotedPairs


def run_pairs(run: Run, count: int, device: torch.device, memory: float) -> RunPairs:
    """The pairs of a run, and some `count` of them with what is known of each.

    Without a store the models are run once, and what they say is held, so that there are no more
    pairs than fit into `memory` bytes. Raises ValueError where the run's models, texts or store
    have changed.
    """
    seed = run.config.shuffle_seed
    store = run_store(run.config)
    if store is not None:
        return RunPairs(StoreStream(store, seed=seed), stored_pairs(store, count, seed))
    sources = load_run_sources(run.config, device)
    windows, _ = load_windows(run.config, sources)
    counts = window_numbers(windows, "num_pairs")
    bytes_each = sum(source.width * source.model.dtype.itemsize for source in sources)
    rows = _some_windows(counts, min(count, int(memory // bytes_each)), seed)
    size = run.config.batch_size
    raw, origin = harvest_windows(sources, windows, rows.tolist(), batch_size=size)
    held, numbers = [x.cpu() for x in raw], torch.arange(len(origin))
    notes = WindowNotes(windows).at(origin[:, 0], origin[:, 1])
    noted = _noted(lambda index: [x[index] for x in held], numbers, notes)
    return RunPairs(TensorStream(held, seed=seed), noted)


def reference_pairs(folder: Path, widths: Sequence[int], count: int) -> NotedPairs:
    """Pairs of a store of other models; raises ValueError where their widths are others."""
    store = ActivationStore.open(folder)
    if list(store.d_sources) != list(widths):
        raise ValueError(
            f"The reference '{folder}' has sources of widths {store.d_sources}, and the run's are "
            f"{list(widths)}: a reference is of the same places in models of the same widths."
        )
    return stored_pairs(store, count)


def beside(store: ActivationStore, folder: Path, noted: NotedPairs) -> Beside | None:
    """What stands in a reference for the one model of a store that is not in it.

    None where it is not the model's base or fine-tune at the same place, or where the reference's
    pairs are others than the noted ones of the store.
    """
    reference = ActivationStore.open(folder)
    both = list(zip(store.sources, reference.sources, strict=False))
    other = [s for s, (mine, theirs) in enumerate(both) if not same_model(mine, theirs)]
    if len(other) != 1 or len(store) != len(reference):
        return None
    [source] = other
    mine, theirs = both[source]
    if not same_family(mine, theirs) or mine["hookpoint"] != theirs["hookpoint"]:
        return None
    notes = [one.notes(noted.numbers) for one in (store, reference)]
    if not all(torch.equal(*of) for of in ([n.text_id for n in notes], [n.end for n in notes])):
        return None
    column, kl = f"loglik_{source}", None
    if all(column in one.column_names for one in (store, reference)):
        kl = divergence_of_likelihoods(
            *(one.columns(noted.numbers)[column] for one in (store, reference))
        )
    return Beside(source, lambda index: reference.rows(index)[source], kl)


def _some_windows(counts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of windows, ascending, whole ones until there are `count` pairs or all are there."""
    order = random_numbers(CHOSEN, seed).permutation(len(counts))
    enough = int(np.searchsorted(np.cumsum(counts[order]), count)) + 1
    return np.sort(order[:enough])
