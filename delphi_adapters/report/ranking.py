"""Which latents a report names first, and what was counted and computed of each."""

from __future__ import annotations

from typing import Any

from .data import ReportData
from .statements import model_names


def ranked(data: ReportData) -> list[dict[str, Any]]:
    """Rows of latents that are flagged, judged by the filter or scored: flagged, exclusive first.

    A latent that the others predict is among them: its score takes that into account.

    A latent without an exclusivity score comes behind those that have one. Without a judge those
    come first that show the largest listed differences, then those that the filter scores highest,
    then those whose effects are least alike.
    """
    compared = set(data.compared)
    rows = [
        row
        for row in data.features.to_pylist()
        if (row["harmful"] and row["latent"] not in compared)
        or row["filter_verdict"] == "kept"
        or (row["filter_verdict"] == "predictable" and row["filter_score"])
        or row["exclusivity"] is not None
        or row["likeness"] is not None
    ]

    def rank(row: dict[str, Any]) -> tuple[float, ...]:
        likeness = 2.0 if row["likeness"] is None else row["likeness"]
        exclusivity, score = row["exclusivity"] or 0, row["filter_score"] or 0
        listed = row["difference_score"] or 0
        return (-bool(row["harmful"]), -exclusivity, -listed, -score, likeness)

    return sorted(rows, key=rank)


def description(data: ReportData, row: dict[str, Any]) -> list[tuple[str, str]]:
    """What was counted and computed of a latent, each with what it is; nothing if it was not."""
    found = [("Fires on", row["fires_on"]), ("Words around", row["characteristic_words"])]
    for s, name in enumerate(model_names(data)[:2]):
        found.append((f"Promotes in {name}", row[f"promoted_{s}"]))
        found.append((f"Suppresses in {name}", row[f"suppressed_{s}"]))
    return [(what, text) for what, text in found if text]
