"""Where latents begin that are to find what a few pairs have: directions in which these stand out.

No random direction is near a rare and small difference, and a latent that begins far from it never
finds it. Two that begin alike fire together, over-reconstruct and shrink each other until both die.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The share of the pairs that each step of the search looks at, and the cosine of two directions
# that are the same. Wide steps find the way from a single pair, the last says what stands out.
SHARES = (0.05, 0.05, 0.05, 0.01)
ALIKE = 0.7
# Of each round: single pairs to begin at, for each direction still missing and in all.
STARTS_EACH, LEAST_STARTS = 2, 1_024
ROUNDS = 4
_ENTRIES_AT_ONCE = 2**25
_COMPARED_AT_ONCE = 512


def standing_out(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Directions in which a hundredth of white, centred x `[n, D]` lies far out.

    At most `count` unit vectors `[m, D]`, no two of them alike, those of one round with the
    farthest first. Each round begins at single pairs, drawn by `generator` (on the CPU) in
    proportion to their squared length, and moves each to the mean of what is farthest along it,
    weighted as by a latent in training. The next one looks at what the directions found so far do
    not explain.
    """
    found = x[:0]
    nothing = torch.finfo(x.dtype).eps * x.pow(2).sum(1).max().cpu()
    for _ in range(ROUNDS):
        missing = count - len(found)
        weights = x.pow(2).sum(1).cpu()
        weights = weights * (weights > nothing)
        starts = min(max(STARTS_EACH * missing, LEAST_STARTS), int(weights.count_nonzero()))
        if not missing or not starts:
            break
        drawn = torch.multinomial(weights, starts, generator=generator)
        moved = F.normalize(x[drawn.to(x.device)], dim=1)
        for share in SHARES:
            moved = F.normalize(written_by(x, moved, x, share), dim=1)
        moved = _unlike(moved[_far_out_order(x, moved)], found, missing)
        if not len(moved):
            break
        found = torch.cat([found, moved])
        x = _unexplained(x, moved)
    return found


def written_by(x: Tensor, directions: Tensor, y: Tensor, share: float = SHARES[-1]) -> Tensor:
    """Sum of y `[n, E]` over what is farthest out in x `[n, D]` along each of m directions.

    Weighted by how far; `[m, E]`.
    """
    return torch.cat([strength.T @ y for _, strength in _far_out(x, directions, share)])


def _far_out(x: Tensor, directions: Tensor, share: float) -> Iterator[tuple[int, Tensor]]:
    """How far out a share of x is along each direction, 0 for all others, in chunks `[n, c]`.

    Each with the number of its first direction.
    """
    number = min(max(int(share * len(x)), 1) + 1, len(x))
    start = 0
    for part in directions.split(max(_ENTRIES_AT_ONCE // len(x), 1)):
        along = x @ part.T
        least = _largest(along, number).clamp_min(0)
        yield start, along * (along > least)
        start += len(part)


def _largest(x: Tensor, number: int) -> Tensor:
    """The `number`-th largest of each column of x `[n, c]`."""
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float64):
        return x.topk(number, dim=0).values[-1]
    # Takes half as long as topk, which puts them in order and says where they are.
    columns = np.partition(x.T.contiguous().numpy(), len(x) - number, axis=1)
    return torch.from_numpy(columns[:, len(x) - number].copy())


def _far_out_order(x: Tensor, directions: Tensor) -> Tensor:
    sums = [strength.sum(0) for _, strength in _far_out(x, directions, SHARES[-1])]
    return torch.cat(sums).argsort(descending=True)


def _unlike(directions: Tensor, others: Tensor, count: int) -> Tensor:
    """The first `count` directions that are like none of the others, nor one before."""
    kept = others
    for part in directions[directions.norm(dim=1) > 0].split(_COMPARED_AT_ONCE):
        part = part[~(part @ kept.T > ALIKE).any(1)]
        alike = (part @ part.T > ALIKE).cpu()
        chosen: list[int] = []
        for i in range(len(part)):
            if not alike[i, chosen].any():
                chosen.append(i)
        room = len(others) + count - len(kept)
        kept = torch.cat([kept, part[chosen[:room]]])
    return kept[len(others) :]


def _unexplained(x: Tensor, directions: Tensor) -> Tensor:
    """x less what is far out along that direction of each pair in which it is farthest out."""
    farthest, which = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start, strength in _far_out(x, directions, SHARES[-1]):
        most, column = strength.max(1)
        which = torch.where(most > farthest, column + start, which)
        farthest = torch.maximum(farthest, most)
    return x - farthest[:, None] * directions[which]
