"""Latents that are active together: copies of one difference, and duplicates on two sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from .false_exclusives import FilteredLatents
from .latent_moments import PRESENT, LatentMoments
from .verdicts import Verdict

SAME = 0.7
"""Correlation of two latents' activations from which they are taken for the same."""


@dataclass
class Cluster:
    """Latents exclusive to one source that rise and fall together."""

    source: int
    latents: list[int]
    """The strongest first."""

    score: float
    """How exclusive it is: the latents' scores, weighted by their energy."""

    score_error: float
    """One standard error of that, where the latents' errors are taken to go together."""

    energy: float
    """Mean squared norm of what the latents write together, normalised."""

    firings: int
    """Pairs on which the one that fires most is active."""

    dense: bool
    """Whether that is over a tenth of the pairs."""

    weights: list[float]
    """What an activation of 1 of each latent adds to the strength of the difference."""

    level: float
    """Strength from which the difference counts as present: half of its mean, weighted by itself.
    Latents also fire a little where it is absent; this tells one from the other."""

    direction: Tensor
    """What the latents write together, on average, `[D]`, a unit vector in normalised space."""

    def to_dict(self) -> dict[str, Any]:
        """All but the direction."""
        fields = ("source", "latents", "score", "score_error", "energy", "firings", "dense")
        fields += ("weights", "level")
        return {name: getattr(self, name) for name in fields}


def clusters(
    crosscoder: Crosscoder, filtered: FilteredLatents, threshold: float = SAME
) -> list[Cluster]:
    """The kept latents with copies merged, the highest score first and dense ones last.

    Two latents of a source belong together if the correlation of their activations reaches
    `threshold`, or if others link them. Raises ValueError if the filter took several passes, as
    correlations across passes are unknown.
    """
    from scipy.sparse.csgraph import connected_components

    moments = _moments(filtered)
    correlations = moments.correlations()
    result = []
    for s in range(len(crosscoder.d_sources)):
        kept = (filtered.verdicts == Verdict.KEPT) & (filtered.sources == s)
        mine = kept.nonzero()[:, 0]
        if not len(mine):
            continue
        linked = correlations[mine.numpy()][:, mine.numpy()] >= threshold
        _, labels = connected_components(linked, directed=False)
        labels = torch.from_numpy(labels)
        for label in labels.unique():
            result.append(_cluster(crosscoder, filtered, moments, mine[labels == label], s))
    return sorted(result, key=lambda cluster: (cluster.dense, -cluster.score))


@torch.no_grad()
def _cluster(
    crosscoder: Crosscoder,
    filtered: FilteredLatents,
    moments: LatentMoments,
    members: Tensor,
    s: int,
) -> Cluster:
    members = members[filtered.energy[members].argsort(descending=True, stable=True)]
    latents = filtered.latents[members]
    decoders = crosscoder.decoder(s)[latents.to(crosscoder.device)].double().cpu()
    gram = torch.from_numpy(moments.gram[members.numpy()][:, members.numpy()].toarray())
    energy = (gram * (decoders @ decoders.T)).sum() / max(moments.pairs, 1)
    shares = filtered.energy[members] / filtered.energy[members].sum().clamp_min(1e-30)
    total = (moments.z_sum[members, None] * decoders).sum(0)
    direction = total / total.norm().clamp_min(1e-30)
    weights = decoders @ direction
    strength = (weights * moments.z_sum[members]).sum()
    level = PRESENT * (weights @ gram @ weights) / strength.clamp_min(1e-30)
    return Cluster(
        source=s,
        latents=latents.tolist(),
        score=(shares * filtered.score[members]).sum().item(),
        score_error=(shares * filtered.measured.score.error[members]).sum().item(),
        energy=energy.item(),
        firings=int(filtered.firings[members].max()),
        dense=bool(filtered.dense[members].any()),
        weights=weights.tolist(),
        level=level.item(),
        direction=direction.float(),
    )


def duplicates(filtered: FilteredLatents, threshold: float = SAME) -> list[dict[str, Any]]:
    """Pairs of latents exclusive to different sources that are active together (Table 11).

    They stand for one concept that both sources have. Of all latents that were looked at, kept or
    not, the highest correlation first; each pair with `latents`, `sources` and `correlation`.
    """
    moments = _moments(filtered)
    found = moments.correlations().tocoo()
    pairs = []
    for i, j, correlation in zip(found.row, found.col, found.data, strict=True):
        if filtered.sources[i] < filtered.sources[j] and correlation >= threshold:
            pairs.append(
                {
                    "latents": [int(filtered.latents[i]), int(filtered.latents[j])],
                    "sources": [int(filtered.sources[i]), int(filtered.sources[j])],
                    "correlation": float(correlation),
                }
            )
    return sorted(pairs, key=lambda pair: -pair["correlation"])


def _moments(filtered: FilteredLatents) -> LatentMoments:
    if filtered.moments is None:
        raise ValueError(
            "The filter looked at the latents in several passes, so that it does not know which of "
            "them are active together. Give it more memory (FilterConfig.memory)."
        )
    return filtered.moments
