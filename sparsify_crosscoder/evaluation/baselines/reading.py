"""One pass of two models over aligned windows, or a store of such a pass, and what is kept of it.

N pairs of tokens, n of them with activations, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ...harvest.common_tokens import common_tokens
from ...harvest.divergence import divergence_columns
from ...harvest.harvest import run_harvest
from ...harvest.placement import input_device
from ...harvest.source import Source
from ...store.pair_notes import PairNotes, WindowNotes
from ...store.store import ActivationStore
from ...text.roles import Role
from ...text.window_numbers import window_numbers
from .token_gains import TokenGains

TOKENS_AT_ONCE, TOKENS_AT_ONCE_CPU = 2**14, 2**12
"""Tokens of each model whose last hidden states are held at a time; and on a CPU, where so many
take some ten seconds, after which progress is seen."""

_READ_AT_ONCE = 2**13
_SAMPLE = 0


@dataclass(frozen=True)
class Reading:
    """What two models make of the same texts."""

    windows: Dataset
    notes: PairNotes
    """Of the pairs `[N]`, in the order of the texts, without a chat template's and system
    prompts'."""

    columns: dict[str, Tensor]
    """As far as they are known: `kl_1_0` and `kl_0_1`, `loglik_0` and `loglik_1` of
    `harvest.divergence`, `[N]` float32; the first two of what both vocabularies have."""

    kept: Tensor
    """Which pairs have activations, `[n]`, ascending."""

    activations: list[Tensor]
    """Raw, `[n, D_s]` per source, in the models' or the store's dtype."""

    gains: TokenGains | None
    """None where next tokens are not known."""

    left_out: list[str]
    """What cannot be said of these models, and why."""

    def __len__(self) -> int:
        return len(self.notes.text_id)


def read_models(
    sources: Sequence[Source], windows: Dataset, *, batch_size: int, memory: float
) -> Reading:
    """Run two models over windows once.

    Of activations there are held as many as fit into `memory` bytes, of pairs drawn at random;
    beyond that some numbers for each pair, and `TOKENS_AT_ONCE` last hidden states.
    """
    notes, said = _said(WindowNotes(windows), windows)
    bytes_each = sum(source.width * source.model.dtype.itemsize for source in sources)
    kept = _drawn(len(notes.text_id), int(memory // bytes_each))
    gains, left_out = None, []
    if all(source.head is not None for source in sources):
        try:
            gains = TokenGains(common_tokens(sources[0], sources[1]))
        except ValueError as error:
            left_out.append(f"The distributions of next tokens: {error}")
    else:
        left_out.append("Next tokens: the models were read without their heads.")

    counts = window_numbers(windows, "num_pairs")
    firsts = np.cumsum(counts) - counts
    place = torch.cumsum(said, 0) - 1  # of each pair among those that are noted
    chosen = torch.zeros(len(said), dtype=torch.bool)
    chosen[said.nonzero()[:, 0][kept]] = True
    columns: dict[str, list[Tensor]] = {}
    held: list[list[Tensor]] = [[] for _ in sources]
    on_cpu = input_device(sources[0].model).type == "cpu"
    at_once = TOKENS_AT_ONCE_CPU if on_cpu else TOKENS_AT_ONCE
    # Half of a pair's work is the forwards', half what comes of their last hidden states.
    share = 0.5 if divergence_columns(sources) else 1.0
    with tqdm(total=int(counts.sum()), desc="Reading", unit="pair", unit_scale=True) as bar:
        for rows in _chunks(windows, len(sources), at_once):
            here = slice(int(firsts[rows[0]]), int(firsts[rows[-1]] + counts[rows[-1]]))

            def watch(pairs: Tensor, source: int, one: Tensor, other: Tensor, here=here) -> None:
                bar.update(share * len(pairs))
                mine = said[here][pairs]
                if gains is not None and mine.any():
                    texts = notes.text_id[place[here][pairs[mine]]]
                    if not mine.all():
                        one, other = one[mine.to(one.device)], other[mine.to(other.device)]
                    gains.add(texts, one, other)

            found = run_harvest(
                sources,
                windows,
                rows,
                batch_size=batch_size,
                progress=lambda pairs: bar.update(share * pairs),
                watch=watch,
            )
            for s, x in enumerate(found.activations):
                held[s].append(x[chosen[here].to(x.device)].cpu())
            for name, values in found.columns.items():
                columns.setdefault(name, []).append(values[said[here]])
    known = {name: torch.cat(parts) for name, parts in columns.items()}
    if gains is not None and (divergence := gains.divergence()) is not None:
        known["kl_1_0"], known["kl_0_1"] = divergence
    activations = [torch.cat(parts) for parts in held]
    return Reading(windows, notes, known, kept, activations, gains, left_out)


def read_store(store: ActivationStore, *, memory: float) -> Reading:
    """The same of two models' store, which knows nothing of single next tokens."""
    notes, said = _said(store.window_notes, store.windows)
    numbers = said.nonzero()[:, 0]
    bytes_each = 4 * sum(store.d_sources)
    kept = _drawn(len(numbers), int(memory // bytes_each))
    rows = [store.rows(some) for some in numbers[kept].split(_READ_AT_ONCE)]
    activations = [torch.cat([x.cpu() for x in parts]) for parts in zip(*rows, strict=True)]
    known = [name for name in store.column_names if name[:3] in ("kl_", "log")]
    parts = [store.columns(some, known) for some in numbers.split(_READ_AT_ONCE)] if known else []
    columns = {name: torch.cat([part[name] for part in parts]) for name in known}
    left_out = ["Single next tokens: a store keeps none."]
    return Reading(store.windows, notes, columns, kept, activations, None, left_out)


def _said(window_notes: WindowNotes, windows: Dataset) -> tuple[PairNotes, Tensor]:
    """The notes of pairs that are somebody's words, and which of all pairs these are."""
    counts = window_numbers(windows, "num_pairs")
    window = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
    notes = window_notes.at(torch.from_numpy(window), torch.from_numpy(position))
    said = (notes.role != Role.TEMPLATE) & (notes.role != Role.SYSTEM)
    return PairNotes(*(values[said] for values in notes)), said


def _drawn(count: int, most: int) -> Tensor:
    """Numbers of at most so many of some pairs, ascending; always the same ones."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(_SAMPLE)
    return torch.randperm(count, generator=generator)[:most].sort().values


def _chunks(windows: Dataset, sources: int, at_once: int) -> Iterator[range]:
    """Rows of consecutive windows, of up to so many tokens of each model or just one."""
    sizes = np.stack([_lengths(windows, f"input_ids_{s}") for s in range(sources)], 1)
    first, total = 0, np.zeros(sources, dtype=np.int64)
    for row, size in enumerate(sizes):
        if row > first and (total + size).max() > at_once:
            yield range(first, row)
            first, total = row, np.zeros(sources, dtype=np.int64)
        total += size
    if len(sizes):
        yield range(first, len(sizes))


def _lengths(windows: Dataset, column: str) -> np.ndarray:
    """Of the lists of a column `[windows]`."""
    table: Any = windows.with_format("arrow", columns=[column])[:]
    chunks = table.column(column).chunks
    return np.concatenate([np.diff(part.offsets.to_numpy()) for part in chunks])
