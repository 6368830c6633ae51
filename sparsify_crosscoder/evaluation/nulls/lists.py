"""What is listed of nulls, and the q values that it gives a run's list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import atomic_write_json
from ...harvest.model_identity import source_names
from ...records import read_json
from ...runs.run import Run
from ..differences import (
    DifferenceConfig,
    Differences,
    NullCount,
    crosscoder_differences,
    told_by_next_tokens,
)
from ..error_rates import ErrorRate, NullList, error_rates
from ..false_exclusives import FilterConfig
from .making import made_nulls

LIST = "list.json"
"""Beside the run folder of a null that was made for a run: what is listed of it."""


@dataclass(frozen=True)
class NullEntries:
    """What is listed of a null: the entries that could be findings, `[n]`."""

    name: str
    scores: Tensor
    strengths: Tensor
    findings: int
    tested: int
    """What could have been an entry."""

    heard: bool
    """Whether the KL of its next tokens is in its scores."""

    def by(self, measure: str) -> NullList:
        """With "score" or "strength" as what it is ranked by."""
        return NullList(
            self.name, self.scores if measure == "score" else self.strengths, self.tested
        )


@dataclass(frozen=True)
class ListKind:
    """Of a list, what the list of a null must have in common with it."""

    num_latents: int
    settings: DifferenceConfig
    """The KL counts only where it does in the list, and sources that share a basis are told from
    each other by maps where those of the list are."""

    @classmethod
    def of(cls, found: Mapping[str, Any], num_latents: int) -> ListKind:
        """Of what `Differences.to_dict` gives, and the size of its crosscoder."""
        by_maps = all(one["reference"] is None for one in found["residuals"])
        settings = DifferenceConfig.kept(found["differences"])
        return cls(
            num_latents, replace(settings, by_maps=by_maps, use_kl=found["mean_kl"] is not None)
        )


def with_nulls(
    found: Differences, run: Run, nulls: Sequence[Run], largest_q: float | None = None
) -> Differences:
    """A run's list with q values by what the run's own nulls and others list.

    With `largest_q` the findings are the entries up to it, and not those of the least strength.
    Raises ValueError for nulls of crosscoders of another size, and for a `largest_q` without nulls.
    """
    told, crosscoder = found.to_dict(), found.found.crosscoder
    kind = ListKind.of(told, crosscoder.num_latents)
    lists = [_kept_list(null, kind, crosscoder.device) for null in made_nulls(run)]
    lists += [null_list(null, kind, crosscoder.device) for null in nulls]
    if not lists:
        if largest_q is not None:
            raise ValueError(
                f"A q value needs nulls: `sparsify-crosscoder null {run.path}` makes them, or name "
                "other runs with --nulls."
            )
        return found
    entries = []
    for one, rate in zip(found.entries, rates_of(told, lists), strict=True):
        if rate is not None:
            finding = one.finding if largest_q is None else rate.q_value <= largest_q
            interval = (rate.low, rate.high)
            one = replace(one, finding=finding, q_value=rate.q_value, q_interval=interval)
        entries.append(one)
    return replace(found, entries=entries, nulls=tuple(counts_of(lists)))


def rates_of(found: Mapping[str, Any], nulls: Sequence[NullEntries]) -> list[ErrorRate | None]:
    """The error rate of each row of a list, as `Differences.to_dict` has it.

    None for what next tokens do not tell of, which is no finding. By the score, or by the strength
    where a null has no next tokens of two models, and the list has.
    """
    config = DifferenceConfig.kept(found["differences"])
    heard = [told_by_next_tokens(row["kl"], config) for row in found["rows"]]
    alike = found["mean_kl"] is None or all(null.heard for null in nulls)
    measure = "score" if alike else "strength"
    some = [row[measure] for row, told in zip(found["rows"], heard, strict=True) if told]
    lists = [null.by(measure) for null in nulls]
    rates = iter(error_rates(torch.tensor(some, dtype=torch.float64), found["tested"], lists))
    return [next(rates) if told else None for told in heard]


def counts_of(nulls: Sequence[NullEntries]) -> list[NullCount]:
    """How much of each null would be a finding."""
    return [NullCount(one.name, one.findings, one.tested) for one in nulls]


def null_list(null: Run, kind: ListKind, device: torch.device) -> NullEntries:
    """What is listed of a null; raises ValueError where its crosscoder is of another size."""
    crosscoder = null.crosscoder(device=device)
    if crosscoder.num_latents != kind.num_latents:
        raise ValueError(
            f"The null '{null.path}' has {crosscoder.num_latents:,} latents and the run "
            f"{kind.num_latents:,}: a null is trained as the run was."
        )
    config = FilterConfig(pairs=kind.settings.pairs, outlier_multiple=null.config.outlier_multiple)
    found = crosscoder_differences(null, crosscoder, config, settings=kind.settings)
    some = [one for one in found.entries if told_by_next_tokens(one.kl, kind.settings)]
    return NullEntries(
        " against ".join(source_names(crosscoder.sources)),
        torch.tensor([one.score for one in some], dtype=torch.float64),
        torch.tensor([one.strength for one in some], dtype=torch.float64),
        len(found.findings),
        found.tested,
        found.mean_kl is not None,
    )


def _kept_list(null: Run, kind: ListKind, device: torch.device) -> NullEntries:
    """The list of a null that was made for a run, kept beside it."""
    file: Path = null.path.parent / LIST
    name, settings = null.path.parent.name, asdict(kind.settings)
    if file.is_file():
        kept: dict[str, Any] = read_json(file, dict, "Delete it: it is made again.")
        if kept["settings"] == settings:
            return NullEntries(
                name,
                torch.tensor(kept["scores"], dtype=torch.float64),
                torch.tensor(kept["strengths"], dtype=torch.float64),
                kept["findings"],
                kept["tested"],
                kept["heard"],
            )
    made = replace(null_list(null, kind, device), name=name)
    told = {
        "settings": settings,
        "scores": made.scores.tolist(),
        "strengths": made.strengths.tolist(),
        "findings": made.findings,
        "tested": made.tested,
        "heard": made.heard,
    }
    atomic_write_json(file, told)
    return made
