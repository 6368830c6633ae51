"""Which exclusive latents of a run stand for a difference: verdicts, clusters, duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

from ..crosscoders import Crosscoder
from ..records import read_json
from ..runs.run import Run
from ..scorability import rarity, rarity_line, with_interval
from ..store.stream import ActivationStream
from .clusters import Cluster, clusters, duplicates
from .false_exclusives import FilteredLatents, judge_exclusives
from .filter_config import FilterConfig

SHOWN = 10
PREDICTABLE_SHOWN = 3


class _Latent(TypedDict):
    latent: int
    source: int
    verdict: str
    score: float


class _Cluster(TypedDict):
    latents: list[int]


class _Duplicate(TypedDict):
    latents: list[int]
    correlation: float


class _File(TypedDict):
    """Of a filter's result as JSON, what is read again."""

    verdicts: list[dict[str, int]]
    clusters: list[_Cluster]
    duplicates: list[_Duplicate]
    latents: list[_Latent]


@dataclass(frozen=True)
class FilteredLatent:
    """What the filter said of a latent."""

    latent: int
    source: int
    verdict: str
    score: float
    """How exclusive it is, whatever its verdict."""

    measured: Mapping[str, Any]
    """All of the row, by the names of `FilteredLatents.rows`."""


class DuplicateLatents(NamedTuple):
    """Latents on different sides that fire together."""

    latents: tuple[int, int]
    correlation: float


@dataclass(frozen=True)
class FilterRecord:
    """A filter's result that was kept as JSON."""

    verdicts: list[dict[str, int]]
    """Per source, how many latents have each verdict."""

    clusters: list[list[int]]
    """Latents of each cluster, the most exclusive first."""

    duplicates: list[DuplicateLatents]
    latents: dict[int, FilteredLatent]
    found: Mapping[str, Any]
    """All of it, as `Filtered.to_dict` has it."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> FilterRecord:
        """What `Filtered.to_dict` returned."""
        rows = [
            FilteredLatent(row["latent"], row["source"], row["verdict"], row["score"], row)
            for row in found["latents"]
        ]
        pairs = [
            DuplicateLatents((pair["latents"][0], pair["latents"][1]), pair["correlation"])
            for pair in found["duplicates"]
        ]
        clusters = [cluster["latents"] for cluster in found["clusters"]]
        by_latent = {row.latent: row for row in rows}
        return cls(found["verdicts"], clusters, pairs, by_latent, found)

    @classmethod
    def read(cls, path: Path, remedy: str) -> FilterRecord:
        """What a file holds; raises as `read_json`."""
        return cls.of(read_json(path, _File, remedy))

    @property
    def differences(self) -> list[dict[str, Any]]:
        """The list of differences, as `Difference.to_dict`; none in files of earlier versions."""
        return self.found.get("rows", [])

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Those of them that reach the strength of a finding, the highest score first."""
        return [row for row in self.differences if row["finding"]]

    @property
    def scores(self) -> dict[int, float]:
        """Of every latent that was judged, 0 of those that are not kept."""
        return {
            latent: row.score if row.verdict == "kept" else 0.0
            for latent, row in self.latents.items()
        }

    @property
    def kept(self) -> list[list[int]]:
        """Per source, the latents that stay exclusive to it."""
        rows = [row for row in self.latents.values() if row.verdict == "kept"]
        return [[row.latent for row in rows if row.source == s] for s in range(len(self.verdicts))]

    @property
    def listed(self) -> dict[int, float]:
        """Score of the difference that each latent is in, alone or as one of several.

        Where nothing is listed, as in files of earlier versions, `scores`.
        """
        rows = self.differences
        found = {
            shown["latent"]: row["score"]
            for row in reversed(rows)
            for shown in (row, *row["members"])
            if shown["latent"] is not None
        }
        return found if rows else self.scores

    def text(self, names: Sequence[str]) -> str:
        """See `filter_text`."""
        return filter_text(self.found, names)


@dataclass(frozen=True)
class Filtered:
    """What the filter says of a crosscoder's exclusive latents."""

    arch: str
    config: FilterConfig
    judged: FilteredLatents
    clusters: list[Cluster]
    duplicates: list[dict[str, Any]]
    not_scorable: list[dict[str, Any]]
    """Per source why latents have no score: see `rarity`; and `not_linear`, how many are not."""

    @property
    def verdicts(self) -> list[dict[str, int]]:
        """Per source, how many latents have each verdict."""
        return [self.judged.counts(s) for s in range(len(self.not_scorable))]

    def kept(self, source: int) -> list[int]:
        """The latents that stay exclusive to a source."""
        return self.judged.kept(source).tolist()

    def to_dict(self) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "filter": asdict(self.config),
            "pairs": self.judged.pairs,
            "verdicts": self.verdicts,
            "not_scorable": self.not_scorable,
            "clusters": [cluster.to_dict() for cluster in self.clusters],
            "duplicates": self.duplicates,
            "latents": self.judged.rows(),
        }


def filter_exclusives(
    run: Run,
    config: FilterConfig | None = None,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> Filtered:
    """Judge the latents of a run's crosscoder that are called exclusive, on the run's pairs.

    `seed` chooses one of several crosscoders. Raises ValueError where the run's models, texts or
    store have changed.
    """
    if config is None:
        config = FilterConfig(outlier_multiple=run.config.outlier_multiple)
    return filter_crosscoder(run.crosscoder(seed, device), run.pairs(device), config)


def filter_crosscoder(
    crosscoder: Crosscoder, pairs: ActivationStream, config: FilterConfig
) -> Filtered:
    """As `filter_exclusives`, on any pairs of a crosscoder's sources."""
    judged = judge_exclusives(crosscoder, pairs, config)
    return Filtered(
        crosscoder.arch,
        config,
        judged,
        clusters(crosscoder, judged),
        duplicates(judged),
        [_not_scorable(judged, s, pairs.num_pairs) for s in range(len(crosscoder.d_sources))],
    )


def _not_scorable(filtered: FilteredLatents, source: int, available: int) -> dict[str, Any]:
    counts = filtered.counts(source)
    kinds = {name: counts[name] for name in ("too_rare", "unclear", "not_linear")}
    return kinds | rarity(filtered.evidence(source), filtered.pairs, available)


def filter_text(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """What a filter found, as `Filtered.to_dict` has it, with a name for each source."""
    lines = []
    for name, counts, why in zip(names, found["verdicts"], found["not_scorable"], strict=True):
        unscored = sum(counts.get(kind, 0) for kind in ("too_rare", "unclear", "not_linear"))
        lines.append(
            f"{name}: {sum(counts.values()):,} latents called exclusive; {counts['kept']:,} kept, "
            f"{counts['predictable']:,} predictable from the others, {counts['shadow']:,} shadows "
            f"of them, {unscored:,} not scorable"
        )
        if why.get("unjudged"):
            lines.append(f"  not scorable: {rarity_line(why)}")
        if counts["not_linear"]:
            least = found["filter"]["min_own"]
            lines.append(
                f"  not scorable: of {counts['not_linear']:,} not even their own model predicts "
                f"the activation (R2 below {least:g})"
            )
        lines += _best_predictable(found["latents"], names.index(name))
    lines.append(f"{len(found['duplicates']):,} pairs of latents on different sides fire together")
    lines.append(f"{len(found['clusters']):,} clusters of kept latents; the most exclusive:")
    for cluster in found["clusters"][:SHOWN]:
        latents = ", ".join(map(str, cluster["latents"][:5]))
        if len(cluster["latents"]) > 5:
            latents += f" and {len(cluster['latents']) - 5} more"
        lines.append(
            f"  score {with_interval(cluster['score'], cluster.get('score_error'))}  "
            f"energy {cluster['energy']:.3g}  "
            f"{names[cluster['source']]}  fires on {cluster['firings']:,} pairs"
            f"{' (dense)' if cluster['dense'] else ''}  latents {latents}"
        )
    return "\n".join(lines)


def _best_predictable(rows: Sequence[Mapping[str, Any]], source: int) -> list[str]:
    """What stands highest of latents that are not kept because the others tell where they fire."""
    mine = [r for r in rows if r["source"] == source and r["verdict"] == "predictable"]
    if not mine:
        return []
    best = mine[:PREDICTABLE_SHOWN]
    scores = ", ".join(
        f"{row['latent']} ({with_interval(row['score'], row.get('score_error'))})" for row in best
    )
    return [
        f"  predictable means that the others tell where it fires, not that they do the same "
        f"there; highest scores: latents {scores}"
    ]
