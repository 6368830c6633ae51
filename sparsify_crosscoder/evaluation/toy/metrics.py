"""What a crosscoder found of the toy model's concepts (equations 10 to 12 and the list of B.2.4).

n concepts, M latents, S sources, d width of a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...crosscoders import Crosscoder
from ..false_exclusives import called_exclusive
from .model import ToyModel

RECOVERY_COSINE = 0.8  # B.2.4

FREQUENCY_BINS = 5


@dataclass
class ToyScores:
    """What was recovered, all as shares in [0, 1] unless said otherwise."""

    recovery: float
    """Concepts that some latent has the direction of (equation 11)."""

    shared_recovery: float
    """The same among shared concepts: one latent must have the direction in every source."""

    exclusive_recovery: float
    """The same among exclusive concepts, in their source, whatever class the latent is of."""

    exclusive_recovery_per_source: list[float]

    exclusive_recall: float
    """Exclusive concepts that a latent called exclusive to their source has the direction of."""

    exclusive_recall_per_source: list[float]

    false_positive_rate: float
    """Latents called exclusive that have no direction of an exclusive concept of their source."""

    false_positives_shared: float
    """Part of the rate above: latents that have the direction of a shared concept."""

    false_positives_nothing: float
    """Part of the rate above: latents that have no concept's direction."""

    called_exclusive: int
    """Number of latents called exclusive."""

    missed_as_shared: float
    """Latents called shared that have an exclusive concept's direction."""

    duplicates: float
    """Shared concepts that latents called exclusive have on more than one side."""

    recovery_by_frequency: list[dict[str, float]]
    """Concepts in bins of equal number by frequency, rarest first: `frequency` (their median),
    and the recovered share of `all`, `shared` and `exclusive` ones (None where there are none)."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def score(
    crosscoder: Crosscoder,
    toy: ToyModel,
    exclusive: Sequence[Tensor] | None = None,
    *,
    alive: Tensor | None = None,
    threshold: float = RECOVERY_COSINE,
) -> ToyScores:
    """Compare a crosscoder's decoders with the toy model's concepts.

    `exclusive` are the latents called exclusive to each source, those of equation 12 by default.
    Latents that are not `alive` [M] are left out everywhere, if it is given. A latent recovers a
    concept in a source where the cosine of its decoder and the concept exceeds `threshold`.
    """
    chosen = called_exclusive(crosscoder) if exclusive is None else exclusive
    living = torch.ones(crosscoder.num_latents, dtype=torch.bool) if alive is None else alive.cpu()
    has = torch.stack(
        [
            F.normalize(toy.concepts[s], dim=1)
            @ F.normalize(crosscoder.decoder(s).float(), dim=1).T.to(toy.device)
            > threshold
            for s in range(len(crosscoder.d_sources))
        ]
    ).cpu()
    has &= living  # [S, n, M]
    shared = slice(toy.shared.start, toy.shared.stop)
    sources = range(len(crosscoder.d_sources))
    own = [slice(toy.exclusive(s).start, toy.exclusive(s).stop) for s in sources]

    is_exclusive = torch.zeros(len(sources), crosscoder.num_latents, dtype=torch.bool)
    for s in sources:
        is_exclusive[s, chosen[s].cpu()] = True
    is_exclusive &= living

    recovered = torch.zeros(toy.cfg.num_concepts, dtype=torch.bool)
    recovered[shared] = has[:, shared].all(0).any(1)
    recalled = torch.zeros_like(recovered)
    right = torch.zeros_like(is_exclusive)
    for s in sources:
        recovered[own[s]] = has[s, own[s]].any(1)
        recalled[own[s]] = (has[s, own[s]] & is_exclusive[s]).any(1)
        right[s] = is_exclusive[s] & has[s, own[s]].any(0)
    wrong = is_exclusive & ~right
    wrong_shared = torch.stack([wrong[s] & has[s, shared].any(0) for s in sources])
    sides = torch.stack([(has[s, shared] & is_exclusive[s]).any(1) for s in sources])
    called_shared = living & ~is_exclusive.any(0)
    hides = torch.stack([has[s, own[s]].any(0) for s in sources]).any(0) & called_shared

    called = int(is_exclusive.sum())
    per_source = [_share(recovered[own[s]]) for s in sources]
    recall = [_share(recalled[own[s]]) for s in sources]
    exclusives = slice(0, shared.start)
    return ToyScores(
        recovery=_share(recovered),
        shared_recovery=_share(recovered[shared]),
        exclusive_recovery=_share(recovered[exclusives]),
        exclusive_recovery_per_source=per_source,
        exclusive_recall=_share(recalled[exclusives]),
        exclusive_recall_per_source=recall,
        false_positive_rate=int(wrong.sum()) / max(called, 1),
        false_positives_shared=int(wrong_shared.sum()) / max(called, 1),
        false_positives_nothing=int((wrong & ~wrong_shared).sum()) / max(called, 1),
        called_exclusive=called,
        missed_as_shared=int(hides.sum()) / max(int(called_shared.sum()), 1),
        duplicates=_share(sides.sum(0) > 1),
        recovery_by_frequency=_by_frequency(recovered, toy),
    )


def _share(flags: Tensor) -> float:
    return flags.float().mean().item() if len(flags) else 0.0


def _by_frequency(recovered: Tensor, toy: ToyModel) -> list[dict[str, float]]:
    probabilities = toy.probabilities.cpu()
    is_shared = torch.arange(len(recovered)) >= toy.shared.start
    bins = []
    for members in probabilities.argsort().tensor_split(FREQUENCY_BINS):
        kinds = {"shared": members[is_shared[members]], "exclusive": members[~is_shared[members]]}
        bins.append(
            {
                "frequency": probabilities[members].median().item(),
                "all": _share(recovered[members]),
                **{k: _share(recovered[m]) if len(m) else None for k, m in kinds.items()},
            }
        )
    return bins
