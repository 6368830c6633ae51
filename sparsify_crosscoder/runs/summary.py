"""What a run came to, as its summary.json says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..harvest.model_identity import source_names
from ..records import read_json, reading
from ..scorability import ENOUGH_FIRINGS, FILTER_PAIRS

_OF_LATER_VERSIONS = {"held_out_outlier_share", "fve_with_outliers"}
_OF_LATER_VERSIONS |= {"exclusive_latents", "exclusive_judgeable"}
_RESTORE = "Restore it, or delete it and let the run finish again (--resume)."


@dataclass(frozen=True)
class RunSummary:
    """The result of a run: sources and blocks in the crosscoder's order, fractions of 1.

    What is measured on held-out pairs is None where a run holds none out, and the last four where
    a run of an earlier version did not count it.
    """

    arch: str
    num_latents: int
    pairs: int
    wall_seconds: float
    sources: Sequence[Mapping[str, Any]]
    fve: float | None
    fve_per_source: Sequence[float] | None
    fve_without_top5_per_source: Sequence[float] | None
    mean_l0: float | None
    dead_fraction: float
    dead_fraction_exclusive: Sequence[float | None]
    dead_window: int
    whole: Mapping[str, Any]
    """All that summary.json holds."""

    held_out_outlier_share: float | None = None
    fve_with_outliers: float | None = None
    exclusive_latents: Sequence[int | None] | None = None
    exclusive_judgeable: Sequence[int | None] | None = None

    @classmethod
    def from_dict(cls, summary: Mapping[str, Any]) -> RunSummary:
        """What summary.json holds; raises KeyError naming what is absent."""
        names = cls.__dataclass_fields__.keys() - {"whole"}
        read: dict[str, Any] = {name: summary[name] for name in names - _OF_LATER_VERSIONS}
        read |= {name: summary.get(name) for name in _OF_LATER_VERSIONS}
        return cls(**read, whole=summary)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.whole)

    def text(self, folder: Path) -> str:
        """The summary of the run in a folder, in a few lines."""
        lines = [f"\n{self.arch} with {self.num_latents:,} latents in '{folder}':"]
        if self.fve is not None:
            line = f"  held-out FVE {self.fve:.4f}, mean L0 {self.mean_l0:.1f}"
            if self.held_out_outlier_share:
                line += f"; with the {_percent(self.held_out_outlier_share)} of the pairs that "
                line += f"are outliers, FVE {self.fve_with_outliers:.4f}"
            lines.append(line)
        names = source_names(self.sources)
        for s, (name, source) in enumerate(zip(names, self.sources, strict=True)):
            lines += self._of_source(s, name.removesuffix(f" {source['hookpoint']}"))
        lines.append(
            f"  {_percent(self.dead_fraction)} of all latents did not fire in the last "
            f"{self.dead_window:,} pairs; {self.pairs:,} pairs in {self.wall_seconds:,.0f} s"
        )
        return "\n".join(lines)

    def _of_source(self, s: int, name: str) -> list[str]:
        line = f"  {name} {self.sources[s]['hookpoint']}:"
        if self.fve_per_source is not None and self.fve_without_top5_per_source is not None:
            line += f" FVE {self.fve_per_source[s]:.4f}"
            line += " (without its 5 largest dimensions "
            line += f"{self.fve_without_top5_per_source[s]:.4f})"
        dead = self.dead_fraction_exclusive[s]
        if dead is None:
            return [line]
        latents = None if self.exclusive_latents is None else self.exclusive_latents[s]
        of = "" if latents is None else f" of its {latents:,}"
        fired = f"    {_percent(1 - dead)}{of} exclusive latents fired at least once in the last "
        fired += f"{self.dead_window:,} pairs"
        if self.exclusive_judgeable is not None:
            fired += f", {self.exclusive_judgeable[s]:,} as often as `filter` needs to judge them "
            fired += f"(on 1 in {FILTER_PAIRS // ENOUGH_FIRINGS:,} pairs)"
        return [line, fired]


def _percent(value: float) -> str:
    return f"{value:.1%}"


def read_summary(folder: Path) -> RunSummary:
    """The summary in a run's folder.

    Raises FileNotFoundError for a run that is not finished, Damaged for what is no summary.
    """
    file = folder / "summary.json"
    with reading(file, _RESTORE):
        return RunSummary.from_dict(read_json(file, dict, _RESTORE))
