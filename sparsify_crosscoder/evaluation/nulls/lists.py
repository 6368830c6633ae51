"""What is listed of nulls, and the q values that it gives a run's list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...files import atomic_write_json
from ...harvest.model_identity import source_names
from ...records import read_json
from ...runs.run import Run
from ..differences import (
    Difference,
    DifferenceConfig,
    Differences,
    NullCount,
    crosscoder_differences,
    told_by_next_tokens,
)
from ..error_rates import NullList, error_rates
from ..false_exclusives import FilterConfig
from .making import made_nulls

LARGEST_Q = 0.1
LIST = "list.json"
"""Beside the run folder of a null that was made for a run: what is listed of it."""


def with_nulls(
    found: Differences, run: Run, nulls: Sequence[Run], largest_q: float | None = None
) -> Differences:
    """A run's list with q values by what the run's own nulls and others list.

    With `largest_q` the findings are the entries up to it, and not those of the least score.
    Raises ValueError for nulls of another kind of list: of a crosscoder of another size, or where
    nothing could have been listed.
    """
    own = made_nulls(run)
    lists = [_kept_list(null, found) for null in own]
    lists += [null_list(null, found) for null in nulls]
    if not lists:
        if largest_q is not None:
            raise ValueError(
                f"A q value needs nulls: `sparsify-crosscoder null {run.path}` makes them, or name "
                "other runs with --nulls."
            )
        return found
    return with_error_rates(found, lists, largest_q)


def with_error_rates(
    found: Differences, nulls: Sequence[NullList], largest_q: float | None = None
) -> Differences:
    """A list with q values by what is listed of nulls; see `with_nulls`."""
    heard = [one for one in found.entries if told_by_next_tokens(one.kl, found.config)]
    scores = torch.tensor([one.score for one in heard], dtype=torch.float64)
    rates = dict(zip(map(id, heard), error_rates(scores, found.tested, nulls), strict=True))

    def rated(one: Difference) -> Difference:
        rate = rates.get(id(one))
        if rate is None:
            return one
        finding = one.finding if largest_q is None else rate.q_value <= largest_q
        return replace(one, finding=finding, q_value=rate.q_value, q_interval=(rate.low, rate.high))

    least = found.config.least_score
    counts = [
        NullCount(null.name, int((null.scores >= least).sum()), null.tested) for null in nulls
    ]
    return replace(found, entries=[rated(one) for one in found.entries], nulls=tuple(counts))


def null_list(null: Run, like: Differences) -> NullList:
    """What is listed of a null by the same settings as a list.

    The KL counts only where it does in the list, and sources that share a basis are told from each
    other by maps where those of the list are.
    """
    crosscoder = null.crosscoder(device=like.found.crosscoder.device)
    wanted = like.found.crosscoder.num_latents
    if crosscoder.num_latents != wanted:
        raise ValueError(
            f"The null '{null.path}' has {crosscoder.num_latents:,} latents and the run "
            f"{wanted:,}: a null is trained as the run was."
        )
    settings = _settings(like)
    config = FilterConfig(pairs=settings.pairs, outlier_multiple=null.config.outlier_multiple)
    found = crosscoder_differences(null, crosscoder, config, settings=settings)
    scores = [one.score for one in found.entries if told_by_next_tokens(one.kl, settings)]
    name = " against ".join(source_names(crosscoder.sources))
    return NullList(name, torch.tensor(scores, dtype=torch.float64), found.tested)


def _settings(like: Differences) -> DifferenceConfig:
    by_maps = all(one.reference is None for one in like.residuals)
    return replace(like.config, by_maps=by_maps, use_kl=like.mean_kl is not None)


def _kept_list(null: Run, like: Differences) -> NullList:
    """The list of a null that was made for a run, kept beside it."""
    file: Path = null.path.parent / LIST
    settings = asdict(_settings(like))
    if file.is_file():
        kept: dict[str, Any] = read_json(file, dict, "Delete it: it is made again.")
        if kept["settings"] == settings:
            scores = torch.tensor(kept["scores"], dtype=torch.float64)
            return NullList(null.path.parent.name, scores, kept["tested"])
    made = null_list(null, like)._replace(name=null.path.parent.name)
    told_of = {"settings": settings, "scores": made.scores.tolist(), "tested": made.tested}
    atomic_write_json(file, told_of)
    return made
