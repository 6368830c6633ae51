"""When clusters of two runs are one difference: by what they write, and by when they do.

C clusters of a run, N pairs that both runs read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..crosscoders import Crosscoder
from ..intervals import rate_interval
from ..store.stream import ActivationStream
from .clusters import Cluster
from .latent_moments import encoded

LEAST_COSINE = 0.7
"""Cosine of the directions of two clusters that are one difference."""

LEAST_CORRELATION = 0.35
"""Correlation of their activations."""

SHUFFLED_QUANTILE = 0.99


@dataclass
class FoundClusters:
    """What one run found."""

    name: str
    crosscoder: Crosscoder
    clusters: Sequence[Cluster]


@dataclass(frozen=True)
class Criterion:
    """What two clusters of one source have to reach to be one difference."""

    cosine: float = LEAST_COSINE
    correlation: float = LEAST_CORRELATION

    def __str__(self) -> str:
        return (
            f"a cosine of {self.cosine:.2g} of their directions and a correlation of "
            f"{self.correlation:.2g} of their activations"
        )


@dataclass(frozen=True)
class Matched:
    """How many of some clusters match one of others."""

    matched: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the rate."""
        return rate_interval(self.matched, self.of)

    def __str__(self) -> str:
        if not self.of:
            return "0 of 0"
        low, high = self.interval
        share = f"{self.matched / self.of:.0%}, 95% interval {low:.0%} to {high:.0%}"
        return f"{self.matched:,} of {self.of:,} ({share})"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"matched": self.matched, "of": self.of, "low": low, "high": high}


def cluster_activations(run: FoundClusters, stream: ActivationStream, num_pairs: int) -> Any:
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


def correlations(a: Any, b: Any) -> np.ndarray:
    """Correlation of every column of `a` with every column of `b`, `[C_a, C_b]`."""
    if not a.shape[1] or not b.shape[1]:
        return np.zeros((a.shape[1], b.shape[1]))
    n = a.shape[0]
    means = [np.asarray(part.mean(0)).ravel() for part in (a, b)]
    squares = [np.asarray(part.multiply(part).mean(0)).ravel() for part in (a, b)]
    spread = [np.sqrt(np.maximum(s - m**2, 1e-30)) for s, m in zip(squares, means, strict=True)]
    covariance = (a.T @ b).toarray() / n - np.outer(*means)
    return covariance / np.outer(*spread)


def cosines(a: FoundClusters, b: FoundClusters) -> np.ndarray:
    """Cosine of every cluster's direction with every other's, `[C_a, C_b]`.

    It is -1 for clusters of different sources, and of sources of different widths.
    """
    found = np.full((len(a.clusters), len(b.clusters)), -1.0)
    for source in {cluster.source for cluster in a.clusters}:
        rows, columns = _of_source(a, source), _of_source(b, source)
        directions = [
            np.array([run.clusters[i].direction.numpy() for i in places])
            for run, places in ((a, rows), (b, columns))
        ]
        if columns and directions[0].shape[1] == directions[1].shape[1]:
            found[np.ix_(rows, columns)] = directions[0] @ directions[1].T
    return found


def _of_source(run: FoundClusters, source: int) -> list[int]:
    return [i for i, cluster in enumerate(run.clusters) if cluster.source == source]


def shuffled_correlation(activations: Sequence[Any], seed: int) -> float:
    """What the best match of a cluster correlates with the other run's pairs shuffled, in 99 of 100
    cases."""
    rng = np.random.default_rng(seed)
    best = []
    for i, one in enumerate(activations):
        for j, other in enumerate(activations):
            if i != j and one.shape[1] and other.shape[1]:
                shuffled = other[rng.permutation(other.shape[0])]
                best.append(correlations(one, shuffled).max(1))
    return float(np.quantile(np.concatenate(best), SHUFFLED_QUANTILE)) if best else 0.0


def count_matching(matching: Sequence[np.ndarray]) -> Matched:
    """How many clusters have a match, of all rows of some matrices `[C_a, C_b]` of matches."""
    return Matched(
        sum(int(one.any(1).sum()) for one in matching), sum(len(one) for one in matching)
    )
