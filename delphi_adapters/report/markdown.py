"""The report as Markdown, for places that show no HTML and for reading as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparsify_crosscoder.evaluation.latent_card import LatentCard

from .answer import answer, picture_files
from .data import FeatureDetail, ReportData
from .overview import overview
from .ranking import description, ranked
from .sheets import Cell, Latent
from .statements import KINDS, model_names, null_values, spread, statements
from .text import block, inline

LISTED = 1_000  # latents in the table
PAGES = 50  # latents with a page
CONTEXTS = 3

_UNJUDGED = {
    "latent": "latent",
    "source": "model",
    "fires_on": "fires on",
    "characteristic_words": "words around",
    "promoted_0": "promotes in the first model",
    "promoted_1": "promotes in the second",
    "likeness": "likeness",
    "effect": "effect",
    "filter_verdict": "filter",
    "filter_score": "filter score",
}
_COLUMNS = {
    "latent": "latent",
    "source": "model",
    "explanation": "explanation",
    "category": "category",
    "exclusivity": "exclusivity",
    "exclusivity_blinded": "blinded",
    "detection_score": "detection",
    "filter_verdict": "filter",
    "filter_score": "filter score",
}

_JUDGED_RESULTS = (
    ("exclusivity", "exclusivity", "score"),
    ("exclusivity, judge blinded", "exclusivity_blinded", "blinded_score"),
    ("spread over prompts", "exclusivity_spread", "spread"),
    ("clarity of its effect", "steering_interpretability", "interpretability"),
)
_UNJUDGED_RESULTS = (
    ("likeness of effects", "likeness", "likeness"),
    ("spread over prompts", "likeness_spread", "likeness_spread"),
    ("effect on its own model (KL)", "effect", "effect"),
)


def markdown_report(data: ReportData) -> Iterator[str]:
    """The file in parts."""
    yield f"# {inline(data.title)}\n\n{inline(data.created)}\n\n"
    yield from (f"> **Note.** {inline(one)}\n\n" for one in data.warnings)
    for part in answer(data):
        yield f"**{inline(part.lead)}** {inline(part.text)}".rstrip() + "\n\n"
    yield f"The list of findings as a picture: {', '.join(picture_files())}.\n\n"
    yield "## How far to trust this\n\n"
    yield (
        "Computed from this report's own numbers. The limits between good, caution and bad are a "
        "judgement that says where to look; they prove nothing.\n\n"
    )
    rows = [
        [f"**{o.level}**", *map(inline, (o.about, o.number, o.meaning))] for o in statements(data)
    ]
    yield table(["", "about", "number", "what it means"], rows)
    for sheet in overview(data):
        yield f"\n## {inline(sheet.title)}\n\n"
        yield f"{inline(sheet.note)}\n\n" if sheet.note else ""
        yield table([inline(one) for one in sheet.head], [list(map(_cell, r)) for r in sheet.rows])
    chosen = ranked(data)
    yield from _list(data, chosen)
    detailed = set(data.detailed)
    pages = [row for row in chosen if row["latent"] in detailed][:PAGES]
    for row in pages:
        detail = data.details(row["latent"])
        if detail is not None:
            yield from _page(data, row, detail)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(cell: Cell) -> str:
    return str(cell.index) if isinstance(cell, Latent) else inline(cell, 300)


def _list(data: ReportData, chosen: Sequence[dict[str, Any]]) -> Iterator[str]:
    which = "flagged, kept by the filter or scored" if data.judged else "kept or compared"
    yield f"\n## Latents that are {which}\n\n"
    if not chosen:
        yield "None.\n"
        return
    if len(chosen) > LISTED:
        yield f"The first {LISTED:,} of {len(chosen):,}; features.parquet has all latents.\n\n"
    names = model_names(data)
    columns = _COLUMNS if data.judged else _UNJUDGED
    rows = []
    for row in chosen[:LISTED]:
        cells = {**row, "source": "shared" if row["source"] is None else names[row["source"]]}
        cells["explanation"] = ("**flagged** " if row["harmful"] else "") + inline(
            row["explanation"] or "", 300
        )
        rows.append([cells[k] if k == "explanation" else _value(cells[k]) for k in columns])
    yield table(list(columns.values()), rows)


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else inline(str(value), 100)


def _page(data: ReportData, row: dict[str, Any], detail: FeatureDetail) -> Iterator[str]:
    names = model_names(data)
    own = "shared by its norm"
    if row["source"] is not None:
        own = f"exclusive to {inline(names[row['source']])} by its norm"
    yield f"\n## Latent {row['latent']}\n\n{own}, block {inline(row['partition'])}\n\n"
    yield from (f"**{inline(what)}.** {inline(text)}\n\n" for what, text in description(data, row))
    if data.judged:
        yield f"**Explanation.** {inline(row['explanation'] or 'none')}\n\n"
    if row["reason"]:
        what = "Flagged" if row["harmful"] else "Not flagged"
        category = f" ({inline(row['category'])})" if row["category"] else ""
        yield f"**{what}{category}.** {inline(row['reason'])}\n\n"
    yield _results(data, row)
    yield "\n"
    lines = LatentCard.of(row).lines()
    yield table(
        ["what is known of it", ""], [[inline(one.what), inline(one.said)] for one in lines]
    )
    for one in detail.judgements:
        score = inline(one.status) if one.score is None else f"{one.score} of 5"
        yield f"\n- {inline(one.question)}, {inline(one.prompt, 200)} **{score}.** "
        yield inline(one.reason or "No reason was given.")
    yield "\n"
    yield from _answers(detail)
    for context in detail.contexts[:CONTEXTS]:
        said = f" ({inline(context.said)})" if context.said else ""
        yield f"\nActive at {context.activation:.2f}{said}:\n\n"
        yield block("".join(context.tokens[0]) if context.tokens else "") + "\n"
    if detail.duplicates:
        others = ", ".join(f"{one.latent} ({one.correlation:.2f})" for one in detail.duplicates)
        yield f"\nFires together with: {others}\n"


def _results(data: ReportData, row: dict[str, Any]) -> str:
    """The scores beside those of shared latents and random directions of the same model."""
    rows = []
    for label, column, what in _JUDGED_RESULTS if data.judged else _UNJUDGED_RESULTS:
        beside = [spread(null_values(data, row["source"], kind, what)) for kind in KINDS]
        some = [
            "-"
            if one is None
            else f"{one.mean:.2f} ({one.low:.2f} to {one.high:.2f}) of {one.number}"
            for one in beside
        ]
        rows.append([label, _value(row[column]) or "-", *some])
    if data.judged:
        detection = _value(row["detection_score"]) or "-"
        rows.append(["detection score", detection, *["0.50 by chance"] * 2])
        for column, where in (("held_out", "ranks 11 to 20"), ("quantiles", "weaker passages")):
            value = _value(row[f"detection_{column}"]) or "-"
            rows.append([f"detection, {where}", value, *["0.50 by chance"] * 2])
    verdict = inline((row["filter_verdict"] or "-").replace("_", " "))
    rates = "; ".join(f"{one.what}: {one.count:,} of {one.of:,}" for one in data.nulls) or "-"
    rows.append(["filter", verdict, inline(rates), ""])
    return table(["", "this latent", "shared latents", "random directions"], rows)


def _answers(detail: FeatureDetail) -> Iterator[str]:
    """Answers at the strongest strength, to the first prompt."""
    outputs = detail.outputs
    if outputs is None or not outputs.prompts or not outputs.strengths:
        return
    yield f"\nAnswers at strength {outputs.strengths[-1]:g} to: {inline(outputs.prompts[0])}\n"
    if outputs.note:
        yield f"{inline(outputs.note)}\n"
    for name, answers in zip(outputs.models, outputs.answers, strict=True):
        yield f"\n{inline(name)}:\n\n{block(answers[0][-1])}\n"
