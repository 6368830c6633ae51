"""The overview of a report as plain tables, which every form of the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sparsify_crosscoder.intervals import rate_interval

from .baselines import baseline_sheet, beside_sheet
from .causes import equivalence_sheet, patch_sheet
from .data import ReportData
from .ranking import description, ranked
from .sheets import Cell, Latent, Sheet, number, share
from .statements import (
    KINDS,
    NOTHING,
    column,
    doubts,
    likeness_of,
    model_names,
    null_values,
    scores_of,
    spread,
    would_have_found,
)

FIRST = 10  # latents
DIFFERENCES = 20
_FVE = ("FVE", "FVE with outliers", "FVE without top 5")
SIMILAR = 20  # pairs of explanations that are listed


def overview(data: ReportData) -> list[Sheet]:
    """All tables that have a row."""
    return [one for one in _sheets(data) if one.rows]


def _sheets(data: ReportData) -> Iterator[Sheet]:
    names = model_names(data)
    yield _differences(data, names)
    yield _power(data)
    if data.baselines is not None:
        yield baseline_sheet(data.baselines, names)
        yield beside_sheet(data.baselines)
    yield _models(data, names)
    if not data.judged:
        yield _first(data, names)
    yield _crosscoder(data)
    yield _grafted(data, names)
    if data.patched:
        yield patch_sheet(data.patched, names)
    if data.shared_effects is not None:
        yield equivalence_sheet(data.shared_effects)
    yield _judge(data)
    yield _verdicts(data, names)
    yield Sheet(
        "Null rates",
        "What is found where nothing differs. The last column is how high the rate may still be "
        "(95%).",
        ["where", "found", "of", "rate", "at most"],
        [
            [
                one.what,
                number(one.count),
                number(one.of),
                share(one.count / one.of if one.of else None),
                share(rate_interval(one.count, one.of)[1]),
            ]
            for one in data.nulls
        ],
    )
    if data.judged:
        yield _judged(data, names)
        yield _exclusivity(data, names)
    yield _likeness(data, names)
    yield from _categories(data)
    yield _stitching(data, names)
    yield _stability(data, names)
    yield from _similar(data, names)
    yield _provenance(data)


def _differences(data: ReportData, names: list[str]) -> Sheet:
    told: dict[int, str] = {}
    for row in data.features.to_pylist():
        told[row["latent"]] = row["explanation"] or row["fires_on"] or ""
    rows: list[list[Cell]] = []
    for one in [row for row in data.differences if row["finding"]][:DIFFERENCES]:
        latent = one["latent"]
        dense = " (dense)" if one["dense"] else ""
        rows.append(
            [
                number(one["rank"]),
                _kind(one),
                "-" if latent is None else Latent(latent),
                names[one["source"]],
                "-" if latent is None else told.get(latent) or "-",
                f"{share(one['firings'] / one['pairs'])}{dense}",
                number(one["score"]),
                number(one.get("q_value")),
                number(one["kl"]),
                number(len(one["members"])),
            ]
        )
    warned = "".join(f"{one.about}: {one.number}. {one.meaning} " for one in doubts(data))
    return Sheet(
        "What differs",
        f"{warned}Differences of all kinds, by one score: the share that each accounts for of "
        "what the other models do not tell of its model, along its own direction, beyond noise, "
        "times how far the models' answers differ in those texts, where that is known. Present: "
        "on how many of the pairs. q: share of the list down to it that is false by the nulls, if "
        "there are any. KL: how far the models' next tokens differ there, in nats. "
        "Also: how many other latents and changes show the same.",
        ["", "kind", "latent", "model", "what was found", "present", "score", "q", "KL", "also"],
        rows,
    )


def _power(data: ReportData) -> Sheet:
    title, note = "What would have been found", ""
    if data.lists_nothing:
        title, note = "What differs", f"{NOTHING} "
    if data.power is None:
        rows: list[list[Cell]] = [[would_have_found(data)]] if data.lists_nothing else []
        return Sheet(title, note.strip(), [""], rows)
    head, *rows = map(list[Cell], data.power.rows())
    return Sheet(
        title,
        f"{note}{data.power.sentence()} Their directions are known; they were added to the run's "
        "own activations on random pairs, wherever a token occurs, or in all texts in which it "
        "occurs, and a crosscoder was trained on these as the run's was. Size: in median norms of "
        "the centred activations. Columns: shares of the pairs that have one. In brackets "
        "intervals of 95%. A plant changes nothing that the models say, so no KL was asked for.",
        [str(one) for one in head],
        rows,
    )


def _kind(one: Mapping[str, Any]) -> str:
    """What sort of difference it is, in words."""
    if one["kind"] == "mean":
        return "shift of the mean"
    if one["kind"] == "map":
        return "linear change"
    if one["kind"] == "component":
        return f"component {one['component']}"
    return f"{one['kind']}, {one['verdict'].replace('_', ' ')}"


def _models(data: ReportData, names: list[str]) -> Sheet:
    keys = ("fve_per_source", "fve_per_source_with_outliers", "fve_without_top5_per_source")
    keys += ("dead_fraction_exclusive",)
    rows: list[list[Cell]] = []
    for s, model in enumerate(data.models):
        values = [(data.summary.get(key) or [None] * len(names))[s] for key in keys]
        rows.append(
            [
                str(model["name"]),
                str(model["hookpoint"]),
                number(int(model["width"])),
                *(number(value, 3) for value in values[:3]),
                share(values[3]),
            ]
        )
    return Sheet(
        "Models",
        "FVE: share of the held-out variance that the crosscoder explains, without the pairs that "
        "training left out as outliers and with them; a few dimensions may hold half of it, so "
        "also without the five largest.",
        [*("model", "hookpoint", "width", *_FVE), "dead exclusive latents"],
        rows,
    )


def _crosscoder(data: ReportData) -> Sheet:
    summary = data.summary
    sizes = summary.get("partition") or {}
    parts = sizes.items() if isinstance(sizes, Mapping) else enumerate(sizes)
    seconds = summary.get("wall_seconds")
    facts = [
        ("architecture", summary.get("arch")),
        ("latents", number(summary.get("num_latents"))),
        ("partitions", ", ".join(f"{name} {number(size)}" for name, size in parts) or None),
        ("pairs trained on", number(summary.get("pairs"))),
        ("FVE", number(summary.get("fve"), 3)),
        ("FVE with outliers", number(summary.get("fve_with_outliers"), 3)),
        ("outliers among held-out pairs", share(summary.get("held_out_outlier_share"))),
        ("latents active on a pair", number(summary.get("mean_l0"), 1)),
        ("dead latents", share(summary.get("dead_fraction"))),
        ("training time", None if seconds is None else f"{seconds / 60:,.1f} minutes"),
    ]
    rows: list[list[Cell]] = [[what, str(v)] for what, v in facts if v not in (None, "-")]
    return Sheet("Crosscoder", "", ["", ""], rows)


def _grafted(data: ReportData, names: list[str]) -> Sheet:
    def cell(effect: Mapping[str, Any] | None) -> str:
        if not effect:
            return "-"
        low, value, high = (effect[key] for key in ("low", "value", "high"))
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"

    rows: list[list[Cell]] = []
    for name, one in zip(names, data.grafted.get("models", []), strict=False):
        for what, effect in one["effects"].items():
            rows.append([name, what, "-", cell(effect["loss"]), cell(effect["kl"])])
        for what, left in one["left_out"].items():
            label = f"the reconstruction without {what} latents, beside it"
            effects = cell(left.get("loss")), cell(left.get("kl"))
            rows.append([name, label, number(left["latents"]), *effects])
    return Sheet(
        "The reconstruction in place of the activation",
        "Change of the cross-entropy of text, and KL of the next token from that of the model as "
        "it is, nats a token (95%, by text). Activations that are no end of an aligned pair stay.",
        ["model", "in place of the activation", "latents left out", "loss", "KL"],
        rows,
    )


def _verdicts(data: ReportData, names: list[str]) -> Sheet:
    verdicts = data.filter.get("verdicts", [])
    kinds = list(dict.fromkeys(kind for one in verdicts for kind in one))
    return Sheet(
        "What the false-exclusive filter says",
        "Of the latents that are exclusive by their norm. Kept: the model's own activations tell "
        "the latent's, the other's do not. Predictable: the other's tell where it fires, which "
        "does not say that it does the same there. Too rare, not linear, unclear: not scorable.",
        ["model", "called exclusive", *(kind.replace("_", " ") for kind in kinds)],
        [
            [name, number(sum(one.values())), *(number(one.get(kind, 0)) for kind in kinds)]
            for name, one in zip(names, verdicts, strict=False)
        ],
    )


def _judged(data: ReportData, names: list[str]) -> Sheet:
    columns = ("source", "explanation", "harmful", "detection_score", "interpretable")
    rows = list(zip(*(column(data, name) for name in columns), strict=True))
    table: list[list[Cell]] = []
    for s, name in [*enumerate(names), (None, "shared")]:
        mine = [row[1:] for row in rows if row[0] == s]
        counts = [
            sum(row[0] is not None for row in mine),
            sum(bool(row[1]) for row in mine),
            sum(row[2] is not None for row in mine),
            sum(bool(row[3]) for row in mine),
        ]
        if any(counts):
            table.append([name, number(len(mine)), *map(number, counts)])
    return Sheet(
        "What the judge says",
        "Latents by the model that their norm calls them exclusive to.",
        ["latents of", "latents", "explained", "flagged", "scored", "interpretable"],
        table,
    )


def _first(data: ReportData, names: list[str]) -> Sheet:
    rows: list[list[Cell]] = []
    for row in ranked(data)[:FIRST]:
        told = "; ".join(f"{what}: {text}" for what, text in description(data, row))
        own = "shared" if row["source"] is None else names[row["source"]]
        verdict = (row["filter_verdict"] or "-").replace("_", " ")
        rows.append([Latent(row["latent"]), own, told or "-", verdict, number(row["likeness"])])
    return Sheet(
        "What stands first",
        "Latents of the largest differences, then those whose effects are least alike in both "
        "models. Words are counted in a latent's strongest texts against the corpus; tokens are "
        "those that its direction makes likelier by itself.",
        ["latent", "model", "what was counted and computed", "filter", "likeness"],
        rows,
    )


def _likeness(data: ReportData, names: list[str]) -> Sheet:
    rows: list[list[Cell]] = []
    for s, name in enumerate(names):
        groups = [("exclusive latents", likeness_of(data, s))]
        for kind, label in zip(KINDS, ("shared latents", "random directions"), strict=True):
            groups.append((label, null_values(data, s, kind, "likeness")))
        for label, values in groups:
            if some := spread(values):
                cells = [number(some.number), number(some.mean)]
                rows.append([name, label, *cells, f"{some.low:.2f} to {some.high:.2f}"])
    return Sheet(
        "Likeness of effects, beside what is not exclusive",
        "Correlation of what steering with a direction does to the next words of its model with "
        "what its image does to the other's: 1 is the same, 0 nothing in common. Computed, without "
        "a judge.",
        ["from", "what", "compared", "mean", "range"],
        rows,
    )


def _exclusivity(data: ReportData, names: list[str]) -> Sheet:
    states = list(zip(column(data, "source"), column(data, "exclusivity_status"), strict=True))
    rows: list[list[Cell]] = []
    for s, name in enumerate(names):
        counts = Counter(state for own, state in states if own == s and state is not None)
        groups = [("exclusive latents", counts, scores_of(data, s))]
        for kind, label in zip(KINDS, ("shared latents", "random directions"), strict=True):
            of = [o for o in data.null_scores if o["kind"] == kind and o["source"] == s]
            found = Counter(one["status"] for one in of)
            groups.append((label, found, null_values(data, s, kind, "score")))
        for label, found, scores in groups:
            if not found:
                continue
            some = spread(scores)
            rows.append(
                [
                    name,
                    label,
                    number(sum(found.values())),
                    number(found["not_interpretable"]),
                    number(found["unanswered"]),
                    number(len(scores)),
                    number(some and some.mean),
                    "-" if some is None else f"{some.low:.2f} to {some.high:.2f}",
                ]
            )
    return Sheet(
        "Exclusivity, beside what is not exclusive",
        "1: the effect of steering carries over to the other model; 5: it does not. Shared "
        "latents and random directions of the same model were scored in the same way.",
        ["from", "what", "asked", "no clear effect", "unanswered", "scored", "mean", "range"],
        rows,
    )


def _categories(data: ReportData) -> Iterator[Sheet]:
    for name, rows in data.categories.items():
        cells: list[list[Cell]] = [
            [one.name, number(one.count), f"{one.percentage:.1f}%"] for one in rows
        ]
        if cells:
            total = [number(sum(one.count for one in rows)), "100.0%"]
            cells.append(["Total", *total])
        yield Sheet(
            f"Flagged latents by category: {name}", "", ["category", "count", "share"], cells
        )


def _stitching(data: ReportData, names: list[str]) -> Sheet:
    keys = ("r2", "r2_closed_form", "r2_without_top5")
    rows: list[list[Cell]] = []
    if data.stitching.get("identity"):
        rows.append(["the identity, both ways", "-", "-", number(data.stitching["r2"], 3)])
    for one in data.stitching.get("directions", []):
        name = f"{names[one['from']]} to {names[one['to']]}"
        rows.append([name, *(number(one.get(key), 3) for key in keys)])
    return Sheet(
        "Stitching",
        "R2 of the linear maps between the models on held-out pairs, or of the identity where they "
        "share a basis. What a map misses cannot be carried over, and so looks exclusive.",
        ["map", "R2", "closed form", "without top 5"],
        rows,
    )


def _stability(data: ReportData, names: list[str]) -> Sheet:
    found = data.stability or {"runs": {}, "differences": []}
    rows: list[list[Cell]] = []
    for count in range(len(found["runs"]), 0, -1):
        of = [one for one in found["differences"] if len(one["members"]) == count]
        by_source = [sum(one["source"] == s for one in of) for s in range(len(names))]
        rows.append([f"{count} of {len(found['runs'])} runs", *map(number, by_source)])
    return Sheet(
        "Stability",
        "Differences by the number of runs that find them.",
        ["found by", *names],
        rows,
    )


def _similar(data: ReportData, names: list[str]) -> Iterator[Sheet]:
    for one in data.similar:
        first, second = (names[s] for s in one.sources)
        yield Sheet(
            f"Explained alike: {first} and {second}",
            f"{one.pairs:,} pairs of latents, one exclusive to each model, are explained alike; "
            f"{one.confirmed:,} fire together and may be one concept that both models have. "
            f"At most {SIMILAR} are shown, those that fire together first.",
            [first, "explanation", second, "explanation", "similarity", "correlation"],
            [
                [
                    Latent(pair.latents[0]),
                    pair.explanations[0],
                    Latent(pair.latents[1]),
                    pair.explanations[1],
                    number(pair.similarity),
                    number(pair.correlation),
                ]
                for pair in one.listed[:SIMILAR]
            ],
        )


def _judge(data: ReportData) -> Sheet:
    facts = [
        ("name", data.judge.get("name") if data.judged else "none: nobody was asked"),
        ("provider", data.judge.get("provider")),
        ("requests", number(data.judge.get("requests"))),
        (
            "cost",
            None if data.judge.get("cost") is None else f"${data.judge['cost']:,.2f}",
        ),
    ]
    rows: list[list[Cell]] = [[what, str(v)] for what, v in facts if v not in (None, "-")]
    return Sheet("Judge", "", ["", ""], rows)


def _provenance(data: ReportData) -> Sheet:
    return Sheet(
        "Where it comes from",
        "Every stage with the hash of what it was made from.",
        ["stage", "hash", "time", "options"],
        [
            [
                stage,
                str(one.get("hash") or "-"),
                "-" if one.get("seconds") is None else f"{one['seconds']:,.1f} s",
                ", ".join(f"{k}={v}" for k, v in (one.get("options") or {}).items()) or "-",
            ]
            for stage, one in data.provenance.items()
        ],
    )
