"""Which differences come back: the same clusters in other seeds, partition sizes, architectures.

R runs, C clusters of a run, N pairs that all runs read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..crosscoders import Crosscoder
from ..harvest.model_identity import same_model
from ..store.stream import ActivationStream
from .clusters import Cluster
from .latent_moments import encoded

SAME_DIRECTION = 0.7
NULL_QUANTILE = 0.99


@dataclass
class FoundClusters:
    """What one run found."""

    name: str
    crosscoder: Crosscoder
    clusters: Sequence[Cluster]


@dataclass
class Recurring:
    """Clusters of several runs that are one difference."""

    source: int
    members: dict[str, int]
    """Place of the cluster in each run's list, by the run's name; the highest-ranked if several."""

    cosine: float
    """Least cosine of the directions of two members that were matched."""

    correlation: float
    """Least correlation of their activations."""

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


@dataclass
class Stability:
    """Differences, those that most runs found first."""

    runs: list[str]
    differences: list[Recurring]
    null_correlation: float
    """What the best match of a cluster reaches by chance in 99 of 100 cases, where the pairs of one
    run are shuffled."""

    def found_by(self, at_least: int) -> list[Recurring]:
        """Differences that so many runs found."""
        return [one for one in self.differences if len(one.members) >= at_least]

    def table(self, shown: int | None = None) -> str:
        """One line per difference, the first ones, and a column per run: the form of Table 8.

        A run has the place of its cluster in its own list, from 1 on.
        """
        head = ["source", *self.runs, "found"]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for one in self.differences[:shown]:
            places = [one.members.get(run) for run in self.runs]
            marks = ["-" if place is None else f"✓ #{place + 1}" for place in places]
            found = f"{len(one.members)}/{len(self.runs)}"
            lines.append("| " + " | ".join([str(one.source), *marks, found]) + " |")
        return "\n".join(lines)


def stability(
    runs: Sequence[FoundClusters],
    stream: ActivationStream,
    *,
    num_pairs: int = 32_768,
    same_direction: float = SAME_DIRECTION,
    seed: int = 0,
) -> Stability:
    """Match the clusters of runs over the same sources by direction and by activation.

    Two clusters of one source match if the cosine of their directions reaches `same_direction` and
    the correlation of their activations, on the same pairs, both half of that and the null level.
    Raises ValueError for fewer than two runs, or runs of different sources.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    _check(runs)
    activations = [_activations(run, stream, num_pairs) for run in runs]
    null = _null_level(runs, activations, seed)
    least = max(null, same_direction / 2)
    owner = [(r, c) for r, run in enumerate(runs) for c in range(len(run.clusters))]
    first = np.cumsum([0, *(len(run.clusters) for run in runs)])
    links: dict[tuple[int, int], tuple[float, float]] = {}
    for i in range(len(runs)):
        for j in range(i + 1, len(runs)):
            correlations = _correlations(activations[i], activations[j])
            for a, one in enumerate(runs[i].clusters):
                for b, other in enumerate(runs[j].clusters):
                    if one.source != other.source:
                        continue
                    cosine = float(one.direction @ other.direction)
                    if cosine >= same_direction and correlations[a, b] >= least:
                        link = (int(first[i]) + a, int(first[j]) + b)
                        links[link] = (cosine, float(correlations[a, b]))
    ends = np.array(list(links), dtype=np.int64).reshape(-1, 2)
    shape = (len(owner), len(owner))
    graph = sparse.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=shape)
    _, labels = connected_components(graph, directed=False)

    differences = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        members: dict[str, int] = {}
        for place in inside:
            r, c = owner[place]
            members.setdefault(runs[r].name, c)
        strengths = [strength for link, strength in links.items() if labels[link[0]] == label]
        source = runs[owner[inside[0]][0]].clusters[owner[inside[0]][1]].source
        cosine = min((cosine for cosine, _ in strengths), default=1.0)
        correlation = min((correlation for _, correlation in strengths), default=1.0)
        differences.append(Recurring(source, members, cosine, correlation))
    differences.sort(key=lambda one: (-len(one.members), sum(one.members.values())))
    return Stability([run.name for run in runs], differences, null)


def _check(runs: Sequence[FoundClusters]) -> None:
    if len(runs) < 2:
        raise ValueError(f"Stability compares two runs or more, got {len(runs)}.")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError("Every run needs a name of its own.")
    first = runs[0].crosscoder
    for run in runs:
        sources = run.crosscoder.sources
        same = run.crosscoder.d_sources == first.d_sources and all(
            one["hookpoint"] == other["hookpoint"] and same_model(one, other)
            for one, other in zip(sources, first.sources, strict=True)
        )
        if not same:
            raise ValueError(f"'{run.name}' has other sources than '{runs[0].name}'.")


def _activations(run: FoundClusters, stream: ActivationStream, num_pairs: int) -> Any:
    """Size of what each cluster writes on every pair, a sparse `[N, C]` scipy matrix."""
    from scipy import sparse

    members = [latent for cluster in run.clusters for latent in cluster.latents]
    if not members:
        return sparse.csr_matrix((0, 0))
    latents = torch.tensor(members)
    norms = run.crosscoder.decoder_norms().cpu()
    weights = np.concatenate(
        [norms[cluster.latents, cluster.source].numpy() for cluster in run.clusters]
    )
    belongs = np.repeat(np.arange(len(run.clusters)), [len(c.latents) for c in run.clusters])
    into = sparse.csr_matrix((weights, (np.arange(len(members)), belongs)))
    parts = []
    # Outliers stay in, or runs of other thresholds would see other pairs.
    for batch in encoded(run.crosscoder, stream, latents, num_pairs, 0.0):
        code = batch.code
        entries = (code.acts.cpu().numpy(), (code.rows.cpu().numpy(), code.indices.cpu().numpy()))
        parts.append(sparse.csr_matrix(entries, shape=code.shape) @ into)
    return sparse.vstack(parts).tocsr()


def _correlations(a: Any, b: Any) -> np.ndarray:
    """Correlation of every column of `a` with every column of `b`, `[C_a, C_b]`."""
    if not a.shape[1] or not b.shape[1]:
        return np.zeros((a.shape[1], b.shape[1]))
    n = a.shape[0]
    means = [np.asarray(part.mean(0)).ravel() for part in (a, b)]
    squares = [np.asarray(part.multiply(part).mean(0)).ravel() for part in (a, b)]
    spread = [np.sqrt(np.maximum(s - m**2, 1e-30)) for s, m in zip(squares, means, strict=True)]
    covariance = (a.T @ b).toarray() / n - np.outer(*means)
    return covariance / np.outer(*spread)


def _null_level(runs: Sequence[FoundClusters], activations: list[Any], seed: int) -> float:
    """What the best match of a cluster reaches where the pairs of the other run are shuffled."""
    rng = np.random.default_rng(seed)
    best = []
    for i in range(len(runs)):
        for j in range(len(runs)):
            if i != j and activations[i].shape[1] and activations[j].shape[1]:
                shuffled = activations[j][rng.permutation(activations[j].shape[0])]
                best.append(_correlations(activations[i], shuffled).max(1))
    return float(np.quantile(np.concatenate(best), NULL_QUANTILE)) if best else 0.0
