"""Which entries of a batch's pre-activations BatchTopK keeps, without sorting all of them.

Only entries that may reach a level are looked at: the level of the step before, lowered a little.
If too few exact scores reach it, it is lowered further, so the selection is that of a full sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..world import World
from . import cpu_kernels
from .batch_topk import select_largest, select_largest_per_row
from .partition import Group, Partition
from .preactivations import ExactPreactivations, Preactivations
from .sparse_ops import order_by

# What the smallest kept score may fall from one step to the next without a second look.
_SLACK = 0.97
_SAMPLED_ROWS = 64
NUM_LEVELS = 3


class Entries(NamedTuple):
    """Entries of one group, sorted by pair and latent, E of them."""

    rows: Tensor
    """Pair of each entry, `[E]`."""

    latents: Tensor
    """Latent of each entry, counted over all blocks, `[E]`."""

    acts: Tensor
    """Exact activations > 0, `[E]`."""

    scores: Tensor
    """What BatchTopK compares: the activation, times the decoder norms if so configured, `[E]`."""

    def where(self, mask: Tensor) -> Entries:
        """The entries that a mask `[E]` keeps."""
        return self.at(mask.nonzero()[:, 0])

    def at(self, places: Tensor) -> Entries:
        """The entries at some places `[n]`, which must be in order."""
        return Entries(*(part.index_select(0, places) for part in self))

    def followed_by(self, others: Entries, num_pairs: int) -> Entries:
        """These entries, and others as those of `num_pairs` more pairs."""
        others = others._replace(rows=others.rows + num_pairs)
        return Entries(*(torch.cat(parts) for parts in zip(self, others, strict=True)))


def entries_reaching(
    level: Tensor,
    blocks: Sequence[Preactivations],
    partition: Partition,
    group: Group,
    norms: Tensor | None,
) -> Entries:
    """All entries of a group with a positive score of at least `level`, a scalar tensor.

    `blocks` holds every block's pre-activations, `norms` [M] what turns activations into scores.
    """
    entries = _candidates(level, blocks, partition, group, norms)
    return entries.where((entries.scores >= level) & (entries.scores > 0))


def _candidates(
    level: Tensor,
    blocks: Sequence[Preactivations],
    partition: Partition,
    group: Group,
    norms: Tensor | None,
) -> Entries:
    """All entries of a group whose score reaches `level`, and some that fall short of it."""
    found = []
    for b in group.blocks:
        block = partition.blocks[b]
        scale = None if norms is None else norms[block.start : block.stop]
        cuts = level.expand(len(block)) if scale is None else level / scale
        # The exact comparison is the caller's; this one must not lose an entry to rounding.
        eps = 4 * torch.finfo(cuts.dtype).eps
        cuts = (cuts * (1 - eps)).nan_to_num(torch.inf, posinf=torch.inf)
        rows, latents, acts = blocks[b].reaching(cuts.clamp_min(torch.finfo(cuts.dtype).tiny))
        scores = acts if scale is None else acts * scale.index_select(0, latents)
        found.append(Entries(rows, latents + block.start if block.start else latents, acts, scores))
    if len(found) == 1:
        return found[0]
    joined = Entries(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return joined.at(order_by(joined.rows, blocks[0].num_pairs)[0])


def sampled_level(
    share: float,
    blocks: Sequence[Preactivations],
    partition: Partition,
    group: Group,
    norms: Tensor | None,
    world: World,
) -> Tensor:
    """A level that somewhat more than `share` scores per pair will reach, by a sample of rows."""
    scores = []
    for b in group.blocks:
        block = partition.blocks[b]
        values = blocks[b].sample(max(blocks[b].num_pairs // _SAMPLED_ROWS, 1))
        scores.append(values if norms is None else values * norms[block.start : block.stop])
    sample = torch.cat(scores, 1)
    wanted = min(round(2 * share * len(sample)) + 1, sample.numel())
    level = sample.new_zeros(1)
    if wanted:
        level = sample.flatten().topk(wanted, sorted=False).values.min().clamp_min(0)[None]
    return world.gather(level).min() if world.size > 1 else level[0]


def largest_entries(
    budget: int,
    level: Tensor,
    blocks: Sequence[Preactivations],
    partition: Partition,
    group: Group,
    norms: Tensor | None,
    world: World,
) -> tuple[Entries, Tensor]:
    """The `budget` largest positive scores of a group in the global batch, and the smallest kept.

    `level` only says where to look first. The cut is 0 if all positive entries were kept, and
    infinite without a budget.
    """
    if not budget:
        level = torch.full_like(level, torch.inf)
    for attempt in range(NUM_LEVELS):
        lower = lowered(level, attempt)
        entries = _candidates(lower, blocks, partition, group, norms)
        if budget and world.size == 1 and cpu_kernels.serve(entries.scores):
            places, cut = cpu_kernels.largest(entries.scores, budget)
        else:
            mask, cut = select_largest(entries.scores, budget, world)
            places = mask.nonzero()[:, 0]
        # Every entry that reaches `lower` is among the candidates.
        if cut >= lower:
            break
    return entries.at(places), cut


def lowered(level: Tensor, attempt: int) -> Tensor:
    """The level of one of `NUM_LEVELS` attempts; the last is reached by all positive scores."""
    return level * (_SLACK, 0.5, 0.0)[attempt]


def largest_entries_per_row(
    k: int,
    blocks: Sequence[ExactPreactivations],
    partition: Partition,
    group: Group,
    norms: Tensor | None,
) -> Entries:
    """The k largest positive scores of every pair."""
    columns = partition.group_slice(group)
    acts = torch.cat([blocks[b].values for b in group.blocks], 1)
    scores = acts if norms is None else acts * norms[columns]
    rows, places = select_largest_per_row(scores, k).nonzero(as_tuple=True)
    return Entries(rows, places + columns.start, acts[rows, places], scores[rows, places])


def strongest_per_row(
    k: int, latents: Tensor, blocks: Sequence[Preactivations], partition: Partition
) -> Entries:
    """The k largest positive activations of every pair among `latents`, by whole partition."""
    values, found = [], []
    for block, preactivations in zip(partition.blocks, blocks, strict=True):
        mine = latents[(latents >= block.start) & (latents < block.stop)] - block.start
        if len(mine):
            best, places = preactivations.strongest(mine, min(k, len(mine)))
            values.append(best)
            found.append(places + block.start)
    acts, places = torch.cat(values, 1), torch.cat(found, 1)
    if len(values) > 1:
        acts, order = acts.topk(min(k, acts.shape[1]), dim=1)
        places = places.gather(1, order)
    kept = (acts > 0).flatten().nonzero()[:, 0]
    chosen = acts.flatten()[kept]
    return Entries(kept // acts.shape[1], places.flatten()[kept], chosen, chosen)
