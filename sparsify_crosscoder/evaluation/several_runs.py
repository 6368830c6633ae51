"""Filtering several runs over the same models, and which differences they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..hardware import pick_device
from ..harvest.model_identity import source_names
from ..runs.run import Run
from .clusters import clusters
from .false_exclusives import FilterConfig, judge_exclusives
from .stability import FoundClusters, Stability, stability

SHOWN = 20


@dataclass(frozen=True)
class ComparedRuns:
    """What each of several runs found, and what they found together."""

    runs: dict[str, Path]
    """The runs' folders by the names that all else has for them."""

    verdicts: dict[str, dict[str, int]]
    """How many latents of each run have each verdict of the filter."""

    found: list[FoundClusters]
    stability: Stability

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": {name: str(path) for name, path in self.runs.items()},
            "verdicts": self.verdicts,
            "clusters": {
                one.name: [cluster.to_dict() for cluster in one.clusters] for one in self.found
            },
            "null_correlation": self.stability.null_correlation,
            "differences": [one.to_dict() for one in self.stability.differences],
        }

    def text(self) -> str:
        """What the runs found, and the first differences as a table."""
        names = source_names(self.found[0].crosscoder.sources)
        lines = [
            f"{one.name}: {self.verdicts[one.name]['kept']:,} kept, {len(one.clusters):,} clusters"
            for one in self.found
        ]
        for count in range(len(self.found), 1, -1):
            found_by = self.stability.found_by(count)
            of = [sum(one.source == s for one in found_by) for s in range(len(names))]
            parts = ", ".join(f"{n:,} of {name}" for n, name in zip(of, names, strict=True))
            lines.append(f"differences that {count} runs or more found: {parts}")
        lines.append(
            f"By chance, the best match of 99 in 100 clusters correlates "
            f"{self.stability.null_correlation:.3f} at most."
        )
        return "\n".join([*lines, self.stability.table(SHOWN)])


def compare_runs(
    runs: Sequence[Run],
    config: FilterConfig | None = None,
    *,
    device: str | torch.device | None = None,
) -> ComparedRuns:
    """Filter every run, and match what they found on the first run's pairs.

    Of `config` each run's filter has all but the outliers, which are those of its training. Raises
    ValueError for fewer than two runs, or runs of different sources.
    """
    if len(runs) < 2:
        raise ValueError("Stability compares two runs or more; name several run folders.")
    device, config = pick_device(device), config or FilterConfig()
    pairs = runs[0].pairs(device)
    found, verdicts, looked_at = [], {}, 0
    names = _names([run.path for run in runs])
    for name, run in tqdm(
        zip(names, runs, strict=True), desc="Filtering", total=len(runs), unit="run"
    ):
        crosscoder = run.crosscoder(device=device)
        own = replace(config, outlier_multiple=run.config.outlier_multiple)
        judged = judge_exclusives(crosscoder, pairs, own)
        found.append(FoundClusters(name, crosscoder, clusters(crosscoder, judged)))
        verdicts[name] = judged.counts()
        looked_at = max(looked_at, judged.read)
    paths = {name: run.path for name, run in zip(names, runs, strict=True)}
    return ComparedRuns(paths, verdicts, found, stability(found, pairs, num_pairs=looked_at))


def _names(runs: Sequence[Path]) -> list[str]:
    """The runs' folder names, or their paths where these are not different."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
