"""What stands first in a report, in a few lines for a terminal."""

from __future__ import annotations

from sparsify_crosscoder.scorability import with_interval

from .data import ReportData
from .ranking import ranked
from .statements import model_names
from .text import cut, visible

FIRST = 5
WIDTH = 160  # characters of a description


def first_entries(data: ReportData, count: int = FIRST) -> list[str]:
    """Lines that say what the first latents are about."""
    rows, names = ranked(data)[:count], [_line(name) for name in model_names(data)]
    if not rows:
        return ["No latent is flagged, kept by the filter or compared."]
    lines = ["What stands first:"]
    for row in rows:
        own = "shared" if row["source"] is None else f"of {names[row['source']]}"
        facts = [f"latent {row['latent']}, {own}"]
        if row["filter_verdict"]:
            verdict = _line(row["filter_verdict"]).replace("_", " ")
            score, error = row["filter_score"], row["filter_score_error"]
            scored = "" if score is None else f", score {with_interval(score, error)}"
            facts.append(f"filter: {verdict}{scored}")
        if row["likeness"] is not None:
            facts.append(f"likeness {row['likeness']:.2f}")
        if row["exclusivity"] is not None:
            facts.append(f"exclusivity {row['exclusivity']:.1f} of 5")
        lines.append(f"  {', '.join(facts)}")
        told = [("explanation", row["explanation"]), ("fires on", row["fires_on"])]
        told.append(("words around", row["characteristic_words"]))
        for s, name in enumerate(names[:2]):
            told.append((f"promotes in {name}", row[f"promoted_{s}"]))
        lines += [f"    {what}: {_line(text)}" for what, text in told if text]
    return lines


def _line(text: str) -> str:
    """Text of models and corpora, on one line, in which nothing is hidden."""
    return " ".join(visible(cut(text, WIDTH)).split())
