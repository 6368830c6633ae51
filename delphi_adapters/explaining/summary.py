"""What a run of the judge came to: tables in its folder, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.filter import FilterRecord
from sparsify_crosscoder.evaluation.top import source_labels

from . import categories, similar_explanations
from .autointerp import Autointerp
from .categories import CategoryCount
from .features import features, write_features
from .similar_explanations import SimilarPair

if TYPE_CHECKING:
    from pyarrow import Table

LISTED_PAIRS = 1_000  # of explanations that are alike, those that fire together first


class SimilarSummary(NamedTuple):
    """Explanations of two sources that are alike."""

    sources: tuple[int, int]
    pairs: int
    confirmed: int
    """Pairs that fire together."""

    listed: list[SimilarPair]
    """Those that fire together first, not all."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        listed = [asdict(pair) for pair in self.listed]
        return {**self._asdict(), "sources": list(self.sources), "listed": listed}


@dataclass(frozen=True)
class Summary:
    """What is known of some latents; but for the first two, numbers are of those that fire."""

    latents: int
    dead: int
    described: int
    """Latents with characteristic words."""

    flags: dict[str, int]
    """By status of the flag."""

    explained: int
    harmful: int
    scored: int
    interpretable: int
    unanswered: int
    """Examples of the detection test without an answer."""

    verdicts: list[dict[str, int]] | None
    """The filter's, see `Filtered`; None where it was left out."""

    categories: dict[str, list[CategoryCount]]
    """By source, and "shared"."""

    similar: list[SimilarSummary]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.verdicts is None:
            del found["verdicts"]
        counted = self.categories.items()
        return {
            **found,
            "categories": {name: [asdict(one) for one in some] for name, some in counted},
            "similar": [one.to_dict() for one in self.similar],
        }


def summarise(
    autointerp: Autointerp,
    crosscoder: Crosscoder,
    latents: Sequence[int],
    filtered: FilterRecord | None = None,
    described: Mapping[int, Mapping[str, str | None]] | None = None,
) -> Summary:
    """Write the tables, print a summary of these latents and return it.

    `described` is what `descriptions.table_columns` returned.
    """
    table = features(autointerp, crosscoder, filtered, described=described)
    write_features(table, autointerp.folder / "features.parquet")
    return summarise_table(autointerp, crosscoder, latents, table, filtered)


def summarise_table(
    autointerp: Autointerp,
    crosscoder: Crosscoder,
    latents: Sequence[int],
    table: Table,
    filtered: FilterRecord | None = None,
) -> Summary:
    """As `summarise`, of a table of all latents that there is already."""
    import pyarrow as pa

    folder = autointerp.folder
    names = source_labels(crosscoder)
    chosen = table.take(pa.array(latents, pa.int64()))
    rows = [row for row in chosen.to_pylist() if not row["dead"]]
    described = sum(row["characteristic_words"] is not None for row in rows)
    explained, scored = (
        sum(row[column] is not None for row in rows)
        for column in ("explanation", "detection_score")
    )
    harmful, interpretable = (
        sum(bool(row[column]) for row in rows) for column in ("harmful", "interpretable")
    )
    unanswered = sum(row["unanswered"] or 0 for row in rows)
    if filtered is not None:
        print(filtered.text(names))
    if autointerp.judged:
        print(
            f"{len(rows):,} alive latents: {explained:,} explained, {harmful:,} flagged, "
            f"{scored:,} scored, {interpretable:,} interpretable (detection score of at least "
            f"{autointerp.cfg.threshold:g}), {unanswered:,} examples without an answer"
        )
    else:
        print(
            f"{len(rows):,} alive latents, {described:,} of them with characteristic "
            "words; no judge: no explanation was written, nothing was flagged"
        )
    return Summary(
        latents=len(latents),
        dead=len(latents) - len(rows),
        described=described,
        flags=dict(Counter(row["flag_status"] or "not asked" for row in rows)),
        explained=explained,
        harmful=harmful,
        scored=scored,
        interpretable=interpretable,
        unanswered=unanswered,
        verdicts=None if filtered is None else filtered.verdicts,
        categories=_categories(folder, rows, names),
        similar=list(_similar_sides(autointerp, rows, names)),
    )


def _similar_sides(
    autointerp: Autointerp, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[SimilarSummary]:
    for first, second in combinations(range(len(names)), 2):
        pairs = _similar(autointerp, rows, (first, second))
        if not pairs:
            continue
        confirmed = sum(bool(pair.confirmed) for pair in pairs)
        listed = sorted(pairs, key=lambda pair: not pair.confirmed)[:LISTED_PAIRS]
        path = autointerp.folder / f"similar_{first}_{second}.md"
        text = similar_explanations.markdown(listed, (names[first], names[second]))
        path.write_text(text + "\n", encoding="utf-8")
        print(
            f"{len(pairs):,} pairs of explanations of {names[first]} and {names[second]} are "
            f"alike, of which {confirmed:,} fire together: {path}"
        )
        yield SimilarSummary((first, second), len(pairs), confirmed, listed)


def _categories(
    folder: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[CategoryCount]]:
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
    return counts


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
