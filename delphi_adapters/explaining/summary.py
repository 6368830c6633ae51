"""What a run of the judge came to: tables in its folder, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.filter import filter_text
from sparsify_crosscoder.evaluation.top import source_labels

from . import categories, similar_explanations
from .autointerp import Autointerp
from .features import features, write_features
from .similar_explanations import SimilarPair

if TYPE_CHECKING:
    from pyarrow import Table

LISTED_PAIRS = 1_000  # of explanations that are alike, those that fire together first


def summarise(
    autointerp: Autointerp,
    crosscoder: Crosscoder,
    latents: Sequence[int],
    filtered: Mapping[str, Any] | None = None,
    described: Mapping[int, Mapping[str, str | None]] | None = None,
) -> dict[str, Any]:
    """Write the tables, print a summary of these latents and return it as JSON values.

    `filtered` is what `Filtered.to_dict` returned, `described` what
    `descriptions.table_columns` did.
    """
    table = features(autointerp, crosscoder, filtered, described=described)
    write_features(table, autointerp.folder / "features.parquet")
    return summarise_table(autointerp, crosscoder, latents, table, filtered)


def summarise_table(
    autointerp: Autointerp,
    crosscoder: Crosscoder,
    latents: Sequence[int],
    table: Table,
    filtered: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As `summarise`, of a table of all latents that there is already."""
    folder = autointerp.folder
    names = source_labels(crosscoder)
    rows = [row for row in table.take(list(latents)).to_pylist() if not row["dead"]]
    result: dict[str, Any] = {
        "latents": len(latents),
        "dead": len(latents) - len(rows),
        "described": sum(row["characteristic_words"] is not None for row in rows),
        "flags": dict(Counter(row["flag_status"] or "not asked" for row in rows)),
        "explained": sum(row["explanation"] is not None for row in rows),
        "harmful": sum(bool(row["harmful"]) for row in rows),
        "scored": sum(row["detection_score"] is not None for row in rows),
        "interpretable": sum(bool(row["interpretable"]) for row in rows),
        "unanswered": sum(row["unanswered"] or 0 for row in rows),
    }
    if filtered is not None:
        result["verdicts"] = filtered["verdicts"]
        print(filter_text(filtered, names))
    if autointerp.judged:
        print(
            f"{len(rows):,} alive latents: {result['explained']:,} explained, "
            f"{result['harmful']:,} flagged, {result['scored']:,} scored, "
            f"{result['interpretable']:,} interpretable (detection score of at least "
            f"{autointerp.cfg.threshold:g}), {result['unanswered']:,} examples without an answer"
        )
    else:
        print(
            f"{len(rows):,} alive latents, {result['described']:,} of them with characteristic "
            "words; no judge: no explanation was written, nothing was flagged"
        )
    result["categories"] = _categories(folder, rows, names)
    result["similar"] = []
    for first, second in combinations(range(len(names)), 2):
        pairs = _similar(autointerp, rows, (first, second))
        if not pairs:
            continue
        confirmed = sum(bool(pair.confirmed) for pair in pairs)
        listed = sorted(pairs, key=lambda pair: not pair.confirmed)[:LISTED_PAIRS]
        result["similar"].append(
            {
                "sources": [first, second],
                "pairs": len(pairs),
                "confirmed": confirmed,
                "listed": [asdict(pair) for pair in listed],
            }
        )
        path = folder / f"similar_{first}_{second}.md"
        text = similar_explanations.markdown(listed, (names[first], names[second]))
        path.write_text(text + "\n", encoding="utf-8")
        print(
            f"{len(pairs):,} pairs of explanations of {names[first]} and {names[second]} are "
            f"alike, of which {confirmed:,} fire together: {path}"
        )
    return result


def _categories(
    folder: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    found = categories.load_categories(folder)
    counts = {
        name: categories.counts(
            found[row["name"]] for row in rows if row["source"] == s and row["name"] in found
        )
        for s, name in [*enumerate(names), (None, "shared")]
    }
    if shown := {name: some for name, some in counts.items() if some}:
        text = categories.table(shown)
        (folder / "categories.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n")
    return {name: [asdict(one) for one in some] for name, some in counts.items()}


def _similar(
    autointerp: Autointerp, rows: Sequence[Mapping[str, Any]], sources: tuple[int, int]
) -> list[SimilarPair]:
    sides = [
        {
            row["latent"]: row["explanation"]
            for row in rows
            if row["source"] == s and row["explanation"] is not None
        }
        for s in sources
    ]
    if not all(sides):
        return []
    found = similar_explanations.similar_pairs(*sides)
    correlations = similar_explanations.activation_correlations(
        autointerp.cache.folder, autointerp.hookpoint, [pair.latents for pair in found]
    )
    return similar_explanations.confirm(found, correlations)
