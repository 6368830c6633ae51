"""Which of two models that share a basis has what they differ in.

That B has more of a direction and that A has less of it is one difference, which exclusive latents
of both sides read. The model whose own activations move along it, where it is present, has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .difference_copies import Candidate
from .latent_moments import restricted
from .latent_shifts import CodedPairs
from .linear_changes import FittedResidual

Group = tuple[Candidate, list[Candidate]]
"""A difference, and what else shows the same."""

SIDED = ("exclusive", "difference")
"""Kinds of latents that one source alone has."""


def led_by_owners(
    found: CodedPairs, fitted: Sequence[FittedResidual], groups: Sequence[Group]
) -> list[Group]:
    """The same groups, those of two sides led by the best latent of the model that moves.

    In the order of the scores of what leads them.
    """
    sided = [
        i
        for i, (lead, members) in enumerate(groups)
        if lead.kind in SIDED
        and fitted[lead.residual].residual.prediction.reference is not None
        and any(m.kind in SIDED and m.source != lead.source for m in members)
    ]
    result = list(groups)
    if not sided:
        return result
    moved = _own_moves(found, fitted, [groups[i][0] for i in sided])
    for i, own in zip(sided, moved, strict=True):
        lead, members = groups[i]
        others = [m for m in members if m.kind in SIDED and m.source != lead.source]
        if own[others[0].source] > own[lead.source]:
            best = max(others, key=lambda one: one.score)
            rest = [lead if m is best else m for m in members]
            result[i] = (best, rest)
    return sorted(result, key=lambda group: -group[0].score)


def _own_moves(
    found: CodedPairs, fitted: Sequence[FittedResidual], leads: Sequence[Candidate]
) -> list[dict[int, float]]:
    """How far each of both sources moves along a lead's direction, in its raw activations."""
    crosscoder = found.crosscoder
    factors, columns = crosscoder.factors.cpu(), crosscoder.columns
    directions = F.normalize(torch.stack([one.direction for one in leads]).float(), dim=1)
    place = torch.full((len(found.level),), -1)
    place[torch.tensor([one.latent for one in leads])] = torch.arange(len(leads))
    sources = sorted({s for one in leads for s in _sides(fitted, one)})
    there = {s: torch.zeros(len(leads), dtype=torch.float64) for s in sources}
    anywhere = {s: torch.zeros(len(leads), dtype=torch.float64) for s in sources}
    for _, x, code in found.batches():
        some = restricted(code, place, len(leads))
        for s in sources:
            along: Tensor = (x[:, columns[s]].cpu() @ directions.T).double() / factors[s]
            there[s].index_add_(0, some.indices.cpu(), along[some.rows.cpu(), some.indices.cpu()])
            anywhere[s] += along.sum(0)
    moves = []
    for i, one in enumerate(leads):
        count = max(int(found.present[one.latent]), 1)  # pyright: ignore[reportArgumentType]
        means = {s: (there[s][i] / count, anywhere[s][i] / len(found)) for s in _sides(fitted, one)}
        moves.append({s: abs(float(here - mean)) for s, (here, mean) in means.items()})
    return moves


def _sides(fitted: Sequence[FittedResidual], one: Candidate) -> tuple[int, int]:
    prediction = fitted[one.residual].residual.prediction
    assert prediction.reference is not None
    return prediction.source, prediction.reference
