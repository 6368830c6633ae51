"""The cards of a run's latents, from its list of differences and a comparison with other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..crosscoders import Crosscoder
from ..runs.run import Run
from .differences import Differences, list_differences
from .false_exclusives import called_exclusive
from .filter import FilterRecord
from .latent_card import LatentCard
from .nulls.lists import with_nulls
from .several_runs import ComparedRuns


class Recurrence(NamedTuple):
    """How many of several runs find what a latent is kept for."""

    found_by_runs: int
    compared_runs: int


def latent_card(
    run: Run,
    latent: int,
    found: Differences | FilterRecord | None = None,
    compared: ComparedRuns | None = None,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> LatentCard:
    """What is known of one latent of a run.

    `found` is the run's list of differences, or what `filter --json` wrote of it; it is made, with
    the run's own nulls, if it is left out. `compared` is the run beside others. `seed` chooses one
    of several crosscoders. Raises ValueError for a latent that there is none of, and where the
    run's models, texts or store have changed.
    """
    crosscoder = run.crosscoder(seed, device)
    if not 0 <= latent < crosscoder.num_latents:
        raise ValueError(
            f"There is no latent {latent}: '{run.path}' has {crosscoder.num_latents:,}, from 0 on."
        )
    if found is None:
        found = with_nulls(list_differences(run, seed=seed, device=device), run, [])
    record = found if isinstance(found, FilterRecord) else FilterRecord.of(found.to_dict())
    again = {} if compared is None else recurrences(compared.to_dict(), run.path, seed)
    return cards_of(crosscoder, record, recurring=again)[latent]


def cards_of(
    crosscoder: Crosscoder,
    filtered: FilterRecord | None,
    differences: Sequence[Mapping[str, Any]] | None = None,
    recurring: Mapping[int, Recurrence] | None = None,
) -> list[LatentCard]:
    """The card of every latent, in order, with what a filter and a comparison of runs say.

    `differences` are the rows of the list with their q values, those of the filter if left out.
    """
    sources = {
        int(latent): s for s, some in enumerate(called_exclusive(crosscoder)) for latent in some
    }
    norms = crosscoder.relative_decoder_norm().tolist()
    rows = differences or ([] if filtered is None else filtered.differences)
    entries, again = _entries(rows), recurring or {}
    listed = None if filtered is None or "rows" not in filtered.found else False
    judged = {} if filtered is None else filtered.latents
    found = []
    for latent, norm in enumerate(norms):
        told: dict[str, Any] = {"listed": listed, **entries.get(latent, {})}
        if filtered is not None and latent in judged:
            told |= _of_filter(judged[latent].measured, filtered.found.get("pairs"))
        told |= again[latent]._asdict() if latent in again else {}
        found.append(LatentCard(latent, sources.get(latent), norm, **told))
    return found


def recurrences(
    compared: Mapping[str, Any], path: Path, seed: int | None = None
) -> dict[int, Recurrence]:
    """In how many runs each latent's cluster is found, as `ComparedRuns.to_dict` has it.

    Of the run in the folder `path`, with the initialisation `seed` where it has several; no latent
    where it is not among the runs, or in what earlier versions wrote.
    """
    names = [
        name
        for name, folder in compared["runs"].items()
        if Path(folder).resolve() == path.resolve() and (seed is None or _is_seed(name, seed))
    ]
    if not names or "clusters" not in compared:
        return {}
    found, total = {}, len(compared["runs"])
    clusters = compared["clusters"][names[0]]
    for one in compared["differences"]:
        places = [one["members"].get(names[0]), *one.get("copies", {}).get(names[0], [])]
        for place in places:
            for latent in [] if place is None else clusters[place]["latents"]:
                found[latent] = Recurrence(len(one["members"]), total)
    return found


def _is_seed(name: str, seed: int) -> bool:
    _, slash, of = name.rpartition("/seed")
    return not slash or of == str(seed)


def _of_filter(row: Mapping[str, Any], pairs: int | None) -> dict[str, Any]:
    """What the filter measured; not known is what an older one did not."""
    score, error = row["score"], row.get("score_error")
    found = {
        "pairs_present": row.get("firings"),
        "pairs_read": pairs,
        "presence_error": row.get("presence_error"),
        "filter_verdict": row["verdict"],
        "filter_reason": row.get("reason"),
        "filter_score": score,
    }
    if error is not None:
        found["filter_score_low"] = max(score - 1.96 * error, 0.0)
        found["filter_score_high"] = min(score + 1.96 * error, 1.0)
    for kind in ("scaling_error", "scaling_reconstruction"):
        low, high = row.get(f"{kind}_interval") or (None, None)
        ratio = row.get(f"{kind}_ratio")
        found |= {f"{kind}_ratio": ratio, f"{kind}_low": low, f"{kind}_high": high}
    return found


def _entries(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """The entry that each latent is in, alone or as one of several that show the same."""
    found: dict[int, dict[str, Any]] = {}
    for one in rows:
        low, high = one.get("q_interval") or (None, None)
        columns: dict[str, Any] = {
            "listed": True,
            "difference": one["rank"],
            "difference_kind": one["kind"],
            "difference_score": one["score"],
            "q_value": one.get("q_value"),
            "q_low": low,
            "q_high": high,
        }
        if (tested := one.get("verification")) is not None:
            columns["verified"] = tested["verified"]
            columns["verification"] = " ".join(tested["sentences"])
        for member in one["members"]:
            if member["latent"] is not None:
                found[member["latent"]] = columns
        if one["latent"] is not None:
            present = {"pairs_present": one.get("firings"), "pairs_read": one.get("pairs")}
            found[one["latent"]] = columns | present
    return found
