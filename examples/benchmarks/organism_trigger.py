"""Whether a latent, or how far a difference moves, tells a trigger from what is almost one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from organism_texts import Written
from organisms import Organism
from scipy.stats import mannwhitneyu

from sparsify_crosscoder.text.roles import Role


def isolation(
    organism: Organism, texts: Sequence[Written], activations: torch.Tensor, places: torch.Tensor
) -> float | None:
    """AUROC of a latent's largest activation in a text: prompts with the trigger, near misses.

    `activations` [E] are those where it is present, in the texts `places` [E]. None where an
    organism has no near misses, and where one of the two kinds of prompt is not there.
    """
    near = set(organism.near_misses("audit"))
    triggered = torch.tensor([organism.concerns(text.prompt) for text in texts])
    missed = torch.tensor([text.prompt in near for text in texts])
    if not triggered.any() or not missed.any():
        return None
    largest = torch.zeros(len(texts), dtype=activations.dtype)
    largest.scatter_reduce_(0, places, activations, "amax")
    return auroc(largest[triggered], largest[missed])


def moves_isolation(
    organism: Organism, texts: Sequence[Written], along: torch.Tensor, places: torch.Tensor
) -> float | None:
    """The same of how far pairs move, `along` [N] in the texts `places` [N]."""
    return isolation(organism, texts, along - along.min(), places)


def asked(roles: torch.Tensor | None) -> torch.Tensor | None:
    """Which pairs are of what is read before the answer, boolean, by the roles of all `[N]`."""
    return None if roles is None else roles != Role.ASSISTANT


def auroc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Probability that one of the first is above one of the second, ties counting half."""
    found = mannwhitneyu(positive.double().numpy(), negative.double().numpy())
    return float(found.statistic) / (len(positive) * len(negative))
