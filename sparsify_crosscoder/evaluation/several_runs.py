"""Filtering several runs over the same models, and which differences they have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..hardware import pick_device
from ..harvest.model_identity import source_names
from ..runs.run import Run
from ..store.stream import ActivationStream
from .clusters import clusters
from .false_exclusives import FilterConfig, judge_exclusives
from .matching import FoundClusters
from .stability import NullRun, Stability, stability

SHOWN = 20


@dataclass(frozen=True)
class ComparedRuns:
    """What each of several runs found, and what they found together."""

    runs: dict[str, Path]
    """The runs' folders by the names that all else has for them, several for one that has several
    initial seeds."""

    verdicts: dict[str, dict[str, int]]
    """How many latents of each run have each verdict of the filter."""

    found: list[FoundClusters]
    stability: Stability

    same_order: list[list[str]]
    """Groups of two runs or more that read the pairs in one order."""

    same_seed: list[list[str]]
    """Groups of two runs or more that began from one initial seed."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": {name: str(path) for name, path in self.runs.items()},
            "verdicts": self.verdicts,
            "same_order": self.same_order,
            "same_seed": self.same_seed,
            "clusters": {
                one.name: [cluster.to_dict() for cluster in one.clusters] for one in self.found
            },
            **self.stability.to_dict(),
        }

    def text(self) -> str:
        """What the runs found, and the first differences as a table."""
        names = source_names(self.found[0].crosscoder.sources)
        lines = [
            f"{one.name}: {self.verdicts[one.name]['kept']:,} kept, {len(one.clusters):,} clusters"
            for one in self.found
        ]
        lines += [
            f"Data order: {_groups(self.same_order)}.",
            f"Initial seed: {_groups(self.same_seed)}.",
        ]
        for count in range(len(self.found), 1, -1):
            found_by = self.stability.found_by(count)
            of = [sum(one.source == s for one in found_by) for s in range(len(names))]
            parts = ", ".join(f"{n:,} of {name}" for n, name in zip(of, names, strict=True))
            lines.append(f"differences that {count} runs or more found: {parts}")
        return "\n".join([*lines, self.stability.text(), self.stability.table(SHOWN)])


class _Member(NamedTuple):
    """One crosscoder of a run, of which there are several where it has several initial seeds."""

    name: str
    run: Run
    seed: int


def compare_runs(
    runs: Sequence[Run],
    config: FilterConfig | None = None,
    *,
    nulls: Sequence[Run] = (),
    device: str | torch.device | None = None,
) -> ComparedRuns:
    """Filter every run, and match what they found on the first run's pairs.

    The crosscoders of a run with several initial seeds count as a run each. `nulls` are runs over
    the same texts whose clusters are no differences of these models: what matches one of them, or
    one of them another, says how often different things match. Of `config` each run's filter has
    all but the outliers, which are those of its training. Raises ValueError for fewer than two
    runs, runs of different sources, and null runs over other texts or other widths.
    """
    members, of_nulls = _members(runs, nulls)
    if len(members) < 2:
        raise ValueError("Stability compares two runs or more; name several run folders.")
    for null in nulls:
        _check_texts(null, runs[0])
    device, config = pick_device(device), config or FilterConfig()
    pairs = runs[0].pairs(device)
    found, verdicts, looked_at = [], {}, 0
    bar = tqdm(total=len(members) + len(of_nulls), desc="Filtering", unit="run")
    for member in members:
        one = _filtered(member, pairs, config, device)
        found.append(one.found)
        verdicts[member.name] = one.verdicts
        looked_at = max(looked_at, one.read)
        bar.update()
    null_runs = []
    for member in of_nulls:
        own = member.run.pairs(device)
        null_runs.append(NullRun(_filtered(member, own, config, device).found, own))
        bar.update()
    bar.close()
    return ComparedRuns(
        {member.name: member.run.path for member in members},
        verdicts,
        found,
        stability(found, pairs, nulls=null_runs, num_pairs=looked_at),
        _sharing(members, lambda member: (member.run.config.order_seed, _texts(member.run))),
        _sharing(members, lambda member: member.seed),
    )


class _Filtered(NamedTuple):
    found: FoundClusters
    verdicts: dict[str, int]
    read: int


def _filtered(
    member: _Member, pairs: ActivationStream, config: FilterConfig, device: torch.device
) -> _Filtered:
    several = len(member.run.config.init_seeds) > 1
    crosscoder = member.run.crosscoder(member.seed if several else None, device)
    own = replace(config, outlier_multiple=member.run.config.outlier_multiple)
    judged = judge_exclusives(crosscoder, pairs, own)
    found = FoundClusters(member.name, crosscoder, clusters(crosscoder, judged))
    return _Filtered(found, judged.counts(), judged.read)


def _members(runs: Sequence[Run], nulls: Sequence[Run]) -> tuple[list[_Member], list[_Member]]:
    """The crosscoders of the runs and of the null runs, with names that are different.

    Names are those of the runs' folders, or their paths where these are not different, with the
    seed where a run has several.
    """
    folders = [run.path for run in (*runs, *nulls)]
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    members = [
        [
            _Member(f"{name}/seed{seed}" if len(run.config.init_seeds) > 1 else name, run, seed)
            for seed in run.config.init_seeds
        ]
        for name, run in zip(names, (*runs, *nulls), strict=True)
    ]
    first, rest = members[: len(runs)], members[len(runs) :]
    return [one for some in first for one in some], [one for some in rest for one in some]


def _texts(run: Run) -> Any:
    """What tells a run's texts apart, None where it has no record of them."""
    return ((run.config.trained_on or {}).get("texts") or {}).get("sha256")


def _check_texts(null: Run, run: Run) -> None:
    """Raise ValueError unless a null run's pairs are those of the same places of the same texts, in
    the same order."""
    texts, seeds = (_texts(null), _texts(run)), (null.config.shuffle_seed, run.config.shuffle_seed)
    if None in texts or texts[0] != texts[1] or seeds[0] != seeds[1]:
        raise ValueError(
            f"The null run '{null.path}' was not trained on the texts of '{run.path}', so that its "
            "clusters cannot be compared by when they are active. Harvest the null pair from the "
            "same texts with the same options (and tokenizers), and train it on that."
        )


def _sharing(members: Sequence[_Member], of: Callable[[_Member], Hashable]) -> list[list[str]]:
    """Names of the members that have something in common, in groups of two or more."""
    groups: dict[Hashable, list[str]] = {}
    for member in members:
        groups.setdefault(of(member), []).append(member.name)
    return [names for names in groups.values() if len(names) > 1]


def _groups(groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return "another for every run"
    return "the same for " + "; the same for ".join(", ".join(names) for names in groups)
