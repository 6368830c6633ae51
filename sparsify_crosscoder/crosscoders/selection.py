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
from . import kernels
from .batch_topk import select_largest, select_largest_per_row
from .partition import Group, Partition
from .preactivations import ExactPreactivations, Preactivations

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


class Scores(NamedTuple):
    """What BatchTopK compares: every block's pre-activations, and what makes scores of them."""

    blocks: Sequence[Preactivations]
    """One per block, without a gradient."""

    partition: Partition
    norms: Tensor | None
    """`[M]`, times which an activation is its score; None if it is that itself."""

    dtype: torch.dtype
    """Of the activations."""

    def of(self, acts: Tensor, latents: Tensor | slice) -> Tensor:
        """Scores of activations whose last dimension is some latents."""
        return acts if self.norms is None else acts * self.norms[latents]


def entries_reaching(level: Tensor, scores: Scores, group: Group) -> Entries:
    """All entries of a group with a positive score of at least `level`, a scalar tensor."""
    entries = _candidates(level, scores, group)
    return entries.where((entries.scores >= level) & (entries.scores > 0))


def _candidates(level: Tensor, scores: Scores, group: Group) -> Entries:
    """All entries of a group whose score reaches `level`, and some that fall short of it."""
    blocks, partition, norms, _ = scores
    found = []
    for b in group.blocks:
        block = partition.blocks[b]
        scale = None if norms is None else norms[block.start : block.stop]
        cuts = level.expand(len(block)) if scale is None else level / scale
        # The exact comparison is the caller's; this one must not lose an entry to rounding.
        eps = 4 * torch.finfo(cuts.dtype).eps
        cuts = (cuts * (1 - eps)).nan_to_num(torch.inf, posinf=torch.inf)
        rows, latents, acts = blocks[b].reaching(cuts.clamp_min(torch.finfo(cuts.dtype).tiny))
        reached = acts if scale is None else acts * scale.index_select(0, latents)
        latents = latents + block.start if block.start else latents
        found.append(Entries(rows, latents, acts, reached))
    if len(found) == 1:
        return found[0]
    joined = Entries(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return joined.at(kernels.order_by(joined.rows, blocks[0].num_pairs)[0])


def sampled_level(share: float, scores: Scores, group: Group, world: World) -> Tensor:
    """A level that somewhat more than `share` scores per pair will reach, by a sample of rows."""
    found = []
    for b in group.blocks:
        block, preactivations = scores.partition.blocks[b], scores.blocks[b]
        values = preactivations.sample(max(preactivations.num_pairs // _SAMPLED_ROWS, 1))
        found.append(scores.of(values, slice(block.start, block.stop)))
    sample = torch.cat(found, 1)
    wanted = min(round(2 * share * len(sample)) + 1, sample.numel())
    level = sample.new_zeros(1)
    if wanted:
        level = sample.flatten().topk(wanted, sorted=False).values.min().clamp_min(0)[None]
    return world.gather(level).min() if world.size > 1 else level[0]


def largest_entries(
    budget: int, level: Tensor, scores: Scores, group: Group, world: World
) -> tuple[Entries, Tensor]:
    """The `budget` largest positive scores of a group in the global batch, and the smallest kept.

    `level` only says where to look first. The cut is 0 if all positive entries were kept, and
    infinite without a budget.
    """
    if not budget:
        level = torch.full_like(level, torch.inf)
    for attempt in range(NUM_LEVELS):
        lower = lowered(level, attempt)
        entries = _candidates(lower, scores, group)
        if budget and world.size == 1:
            places, cut = kernels.largest(entries.scores, budget)
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


def largest_entries_per_row(k: int, scores: Scores, group: Group) -> Entries:
    """The k largest positive scores of every pair; the pre-activations must be exact ones."""
    columns = scores.partition.group_slice(group)
    acts = torch.cat([_exact(scores.blocks[b]) for b in group.blocks], 1)
    ranked = scores.of(acts, columns)
    rows, places = select_largest_per_row(ranked, k).nonzero(as_tuple=True)
    return Entries(rows, places + columns.start, acts[rows, places], ranked[rows, places])


def _exact(preactivations: Preactivations) -> Tensor:
    assert isinstance(preactivations, ExactPreactivations)
    return preactivations.values


def strongest_per_row(k: int, latents: Tensor, scores: Scores) -> Entries:
    """The k largest positive activations of every pair among `latents`, by whole partition."""
    values, found = [], []
    for block, preactivations in zip(scores.partition.blocks, scores.blocks, strict=True):
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


def by_block(
    found: Sequence[Entries], groups: Sequence[Sequence[int]], partition: Partition
) -> list[Entries]:
    """The entries of every block, from those of groups of blocks."""
    parts: dict[int, Entries] = {}
    for entries, members in zip(found, groups, strict=True):
        if len(members) == 1:
            parts[members[0]] = entries
            continue
        for b in members:
            block = partition.blocks[b]
            inside = (entries.latents >= block.start) & (entries.latents < block.stop)
            parts[b] = entries.where(inside)
    return [parts[b] for b in range(len(parts))]
