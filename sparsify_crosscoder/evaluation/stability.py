"""Which differences come back: the same clusters in other seeds, partition sizes, architectures.

That clusters of two runs match says something only as far as different things do not match. Two
things tell: the clusters of one run, which its filter tells apart and which are matched with each
other as with those of another run; and null runs, whose clusters are no differences of this pair.
With the pairs of a run shuffled nothing can match, which is only where the correlations begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..harvest.model_identity import same_model
from ..store.stream import ActivationStream
from .matching import (
    Criterion,
    FoundClusters,
    Matched,
    cluster_activations,
    correlations,
    cosines,
    count_matching,
    shuffled_correlation,
)


@dataclass(frozen=True)
class NullRun:
    """A run over the same texts whose clusters are no differences of the pair in question."""

    found: FoundClusters
    pairs: ActivationStream
    """Its own activations, those of the same places of the texts in the same order."""


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

    copies: dict[str, list[int]] = field(default_factory=dict)
    """Places of further clusters of the same runs that are linked with these."""

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


@dataclass
class Stability:
    """Differences, those that most runs found first."""

    runs: list[str]
    differences: list[Recurring]
    criterion: Criterion
    null_correlation: float
    """What the best match of a cluster reaches by chance in 99 of 100 cases, where the pairs of one
    run are shuffled."""

    next_run: Matched
    """Clusters that match one of the run behind theirs, the first run behind the last."""

    own_run: Matched
    """Clusters that match another of their own run. These are different things, but training keeps
    them apart, so that those of different runs may match by chance more often."""

    nulls: dict[str, Matched] = field(default_factory=dict)
    """Clusters that match one of each null run, of those of comparable sources."""

    between_nulls: Matched | None = None
    """Clusters of null runs that match one of the next null run over another pair."""

    def found_by(self, at_least: int) -> list[Recurring]:
        """Differences that so many runs found."""
        return [one for one in self.differences if len(one.members) >= at_least]

    def to_dict(self) -> dict[str, Any]:
        return {
            "matching": vars(self.criterion),
            "null_correlation": self.null_correlation,
            "next_run": self.next_run.to_dict(),
            "own_run": self.own_run.to_dict(),
            "nulls": {name: one.to_dict() for name, one in self.nulls.items()},
            "between_nulls": self.between_nulls and self.between_nulls.to_dict(),
            "differences": [one.to_dict() for one in self.differences],
        }

    def text(self) -> str:
        """What was taken for one difference, and how many clusters match beside chance."""
        lines = [
            f"Clusters of two runs are one difference from {self.criterion} on. With the pairs of "
            f"one run shuffled, the best match of 99 in 100 correlates {self.null_correlation:.3f} "
            "at most.",
            f"Clusters that match one of one other run: {self.next_run}",
            f"that match another one of their own run, a different thing: {self.own_run}",
        ]
        lines += [
            f"that match one of the null run {name}: {matched}"
            for name, matched in self.nulls.items()
        ]
        if self.between_nulls is not None:
            lines.append(
                f"Clusters of null runs that match one of another pair: {self.between_nulls}"
            )
        return "\n".join(lines)

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


@dataclass(frozen=True)
class _Active:
    """Clusters, and when they are active."""

    found: FoundClusters
    activations: Any


@dataclass(frozen=True)
class _Compared:
    """Every cluster of one run with every one of another, `[C_a, C_b]`."""

    cosines: np.ndarray
    correlations: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, a: _Active, b: _Active, criterion: Criterion) -> _Compared:
        cosine, correlation = cosines(a.found, b.found), correlations(a.activations, b.activations)
        same = (cosine >= criterion.cosine) & (correlation >= criterion.correlation)
        if a is b:
            np.fill_diagonal(same, False)
        return cls(cosine, correlation, same)


def stability(
    runs: Sequence[FoundClusters],
    stream: ActivationStream,
    *,
    nulls: Sequence[NullRun] = (),
    num_pairs: int = 32_768,
    criterion: Criterion | None = None,
    seed: int = 0,
) -> Stability:
    """Match the clusters of runs over the same sources by direction and by activation.

    Two clusters of one source match if they reach the criterion on the same pairs, and correlate
    more than with the pairs of a run shuffled. Raises ValueError for fewer than two runs, runs of
    different sources, and null runs without a source of the same width.
    """
    criterion = criterion or Criterion()
    _check(runs, nulls)
    active = [_Active(run, cluster_activations(run, stream, num_pairs)) for run in runs]
    shuffled = shuffled_correlation([one.activations for one in active], seed)
    criterion = Criterion(criterion.cosine, max(criterion.correlation, shuffled))
    behind = [*active[1:], active[0]]
    of_nulls = [
        _Active(null.found, cluster_activations(null.found, null.pairs, num_pairs))
        for null in nulls
    ]
    return Stability(
        [run.name for run in runs],
        _differences(active, criterion),
        criterion,
        shuffled,
        count_matching(
            [_Compared.of(a, b, criterion).same for a, b in zip(active, behind, strict=True)]
        ),
        count_matching([_Compared.of(a, a, criterion).same for a in active]),
        {
            null.found.name: count_matching(
                [_Compared.of(a, null, criterion).same[_comparable(a, null)] for a in active]
            )
            for null in of_nulls
        },
        _between(of_nulls, criterion),
    )


def _differences(runs: Sequence[_Active], criterion: Criterion) -> list[Recurring]:
    """Clusters that are linked by matches, those of most runs first."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    owner = [(r, c) for r, run in enumerate(runs) for c in range(len(run.found.clusters))]
    first = np.cumsum([0, *(len(run.found.clusters) for run in runs)])
    links: dict[tuple[int, int], tuple[float, float]] = {}
    for i, one in enumerate(runs):
        for j, other in enumerate(runs[i + 1 :], i + 1):
            compared = _Compared.of(one, other, criterion)
            for a, b in np.argwhere(compared.same):
                strength = float(compared.cosines[a, b]), float(compared.correlations[a, b])
                links[int(first[i] + a), int(first[j] + b)] = strength
    ends = np.array(list(links), dtype=np.int64).reshape(-1, 2)
    shape = (len(owner), len(owner))
    graph = sparse.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=shape)
    _, labels = connected_components(graph, directed=False)

    found = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        members: dict[str, int] = {}
        copies: dict[str, list[int]] = {}
        for place in inside:
            r, c = owner[place]
            name = runs[r].found.name
            if members.setdefault(name, c) != c:
                copies.setdefault(name, []).append(c)
        strengths = [strength for link, strength in links.items() if labels[link[0]] == label]
        r, c = owner[inside[0]]
        cosine = min((cosine for cosine, _ in strengths), default=1.0)
        correlation = min((correlation for _, correlation in strengths), default=1.0)
        source = runs[r].found.clusters[c].source
        found.append(Recurring(source, members, cosine, correlation, copies))
    return sorted(found, key=lambda one: (-len(one.members), sum(one.members.values())))


def _comparable(run: _Active, null: _Active) -> np.ndarray:
    """Which clusters of a run have a source of the same width in a null run, `[C]`."""
    widths = null.found.crosscoder.d_sources
    return np.array(
        [
            one.source < len(widths) and len(one.direction) == widths[one.source]
            for one in run.found.clusters
        ],
        dtype=bool,
    )


def _between(nulls: Sequence[_Active], criterion: Criterion) -> Matched | None:
    """Matches of each null run with the next one over another pair."""
    found = []
    for n, null in enumerate(nulls):
        for other in (*nulls[n + 1 :], *nulls[:n]):
            if not _same_sources(null.found, other.found):
                same = _Compared.of(null, other, criterion).same
                found.append(same[_comparable(null, other)])
                break
    return count_matching(found) if found else None


def _same_sources(one: FoundClusters, other: FoundClusters) -> bool:
    a, b = one.crosscoder, other.crosscoder
    return a.d_sources == b.d_sources and all(
        x["hookpoint"] == y["hookpoint"] and same_model(x, y)
        for x, y in zip(a.sources, b.sources, strict=True)
    )


def _check(runs: Sequence[FoundClusters], nulls: Sequence[NullRun]) -> None:
    if len(runs) < 2:
        raise ValueError(f"Stability compares two runs or more, got {len(runs)}.")
    names = [run.name for run in (*runs, *(null.found for null in nulls))]
    if len(set(names)) < len(names):
        raise ValueError("Every run needs a name of its own.")
    for run in runs:
        if not _same_sources(run, runs[0]):
            raise ValueError(f"'{run.name}' has other sources than '{runs[0].name}'.")
    widths = runs[0].crosscoder.d_sources
    for null in nulls:
        own = null.found.crosscoder.d_sources
        if not any(a == b for a, b in zip(widths, own, strict=False)):
            raise ValueError(
                f"The null run '{null.found.name}' has sources of widths {own}, none of which is "
                f"that of the same source here ({widths}): nothing of it can be compared."
            )
