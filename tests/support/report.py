"""A small report whose numbers are known, and texts that mean harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from delphi_adapters.explaining.categories import CategoryCount
from delphi_adapters.explaining.features import schema
from delphi_adapters.explaining.similar_explanations import SimilarPair
from delphi_adapters.explaining.summary import SimilarSummary
from delphi_adapters.report import (
    Context,
    Curve,
    Duplicate,
    FeatureDetail,
    Judgement,
    NullRate,
    ReportData,
    Searched,
    SteeredOutputs,
)
from sparsify_crosscoder.evaluation.baselines.beside import BaselinesBeside, beside
from sparsify_crosscoder.evaluation.baselines.found import Baselines, Found
from sparsify_crosscoder.evaluation.planted_recall import PlantedRecall, PlantFound, Round

PROMPTS = ["What is on your mind?", "Tell me of the sea."]
STRENGTHS = [0.0, 2.0, 8.0]
MODELS = ["models/alpha", "models/beta"]

HARMFUL = [
    "<script>window.ran=1</script>",
    "</script><script>window.ran=1</script>",
    '"><img src=x onerror="window.ran=1">',
    "[link](javascript:window.ran=1) <javascript:window.ran=1>",
    "<svg onload=window.ran=1></svg><iframe src=https://example.org></iframe>",
    "<style>*{display:none}</style> --> ]]> <!-- \u2028 \u2029",
    "right \u202eto left\u202c \u2066isolated\u2069 null \x00 and \x1b[31m",
    "{script} {style} {policy} ${window.ran=1} `${window.ran=1}` &lt;b&gt; &#60;b&#62;",
    "| cell | \n# heading\n```\nfence\n![picture](https://example.org/p.png) https://example.org",
]
"""None of these does anything where it is only text."""

SURROGATE = "half \ud83d and \udc00 a pair"
LONG = "a" * 1_000_000


def row(latent: int, **values: Any) -> dict[str, Any]:
    """A row of the table; a latent of model 0 unless it says otherwise."""
    return {
        "latent": latent,
        "name": f"layers.1+layers.2_latent{latent}",
        "partition": "exclusive_0",
        "source": 0,
        "relative_decoder_norm": 1.0,
        "firings": 100 + latent,
        "frequency": 0.01,
        "dead": False,
        "s_max": 5.0,
        **values,
    }


def scored(score: float, **values: Any) -> dict[str, Any]:
    """Values of the columns of a latent whose exclusivity was scored."""
    return {
        "exclusivity": score,
        "exclusivity_spread": 0.5,
        "exclusivity_blinded": score - 0.5,
        "steering_interpretability": 4.0,
        "exclusivity_status": "scored",
        "sampled": "sample",
        **values,
    }


ROWS = [
    row(
        0,
        explanation="The sea, and ships on it.",
        flag_status="ok",
        harmful=True,
        reason="It hides what ships carry.",
        category="Privacy & Surveillance",
        detection_score=0.9,
        interpretable=True,
        unanswered=0,
        filter_verdict="kept",
        filter_score=0.7,
        filter_score_error=0.04,
        listed=True,
        difference=2,
        q_value=0.04,
        q_low=0.01,
        q_high=0.2,
        found_by_runs=2,
        compared_runs=3,
        **scored(4.5, sampled="flagged"),
    ),
    row(
        1,
        explanation="Names of winter months.",
        flag_status="ok",
        harmful=False,
        detection_score=0.6,
        interpretable=False,
        unanswered=1,
        filter_verdict="predictable",
        filter_score=0.0,
        **scored(2.5),
    ),
    row(2, dead=True, firings=0, filter_verdict="too_rare", filter_score=0.0),
    row(
        3,
        partition="exclusive_1",
        source=1,
        relative_decoder_norm=0.0,
        explanation="Questions of law.",
        flag_status="unparsable",
        detection_score=0.8,
        interpretable=True,
        filter_verdict="kept",
        filter_score=0.4,
    ),
    row(4, partition="shared", source=None, relative_decoder_norm=0.5),
    row(5, partition="shared", source=None, relative_decoder_norm=0.45),
]


def detail(latent: int) -> FeatureDetail:
    """Details in which every text tells where it stands."""
    answers = [
        [[f"model {m}, prompt {p}, strength {k}" for k in STRENGTHS] for p in range(2)]
        for m in range(2)
    ]
    return FeatureDetail(
        latent=latent,
        contexts=[
            Context(
                9.0 - c,
                40 + c,
                [["a", " ship", " sails"], ["a ship", " sails"]],
                [[0, 9, 3], [9, 3]],
            )
            for c in range(6)
        ],
        outputs=SteeredOutputs(PROMPTS, STRENGTHS, MODELS, answers),
        judgements=[
            Judgement("interpretability", PROMPTS[0], 4, "Ships come up more and more.", "ok"),
            Judgement("similarity", PROMPTS[0], 2, "Only one of them speaks of ships.", "ok"),
            Judgement("similarity", PROMPTS[1], None, None, "unparsable"),
        ],
        curves=[
            Curve("alpha", "seafaring", STRENGTHS, [1, 2, 4], [0.5, 1.5, 3.5], [1.5, 2.5, 4.5]),
            Curve("beta", "seafaring", STRENGTHS, [1, 1, 1.5]),
        ],
        duplicates=[Duplicate(1, 0, 0.83)],
        filter={"r2_own": 0.6, "r2_others": 0.1, "shadow": 0.02},
        flag_raw="[HARMFUL]: yes",
    )


def null_score(kind: str, source: int, score: float | None, **values: Any) -> dict[str, Any]:
    """A shared latent or random direction that was scored like a latent."""
    return {
        "name": f"{kind}-{source}",
        "kind": kind,
        "source": source,
        "status": "not_interpretable" if score is None else "scored",
        "score": score,
        "blinded_score": score,
        "spread": None if score is None else 0.25,
        "interpretability": 2.0 if score is None else 3.5,
        **values,
    }


def simple_methods() -> BaselinesBeside:
    """Two texts, a token and a direction; an entry of the list that is in the same texts."""
    entries = [
        Found(1, "text", "kl", 1, 0.7, (0.5, 0.9), "", "a <b>passage</b>", [3]),
        Found(2, "text", "kl", 1, 0.6, None, "", "another", [4]),
        Found(1, "token", "token", 0, 0.01, (0.0, 0.02), "' it'", "", [3, 4]),
        Found(1, "direction", "component", 1, 0.3, (0.2, 0.4), "promotes 'x'", "there", [9]),
    ]
    found = Baselines(entries, {"kl": [*range(20)]}, 20, 400, "as they are", [], {})
    return BaselinesBeside(found, beside({1: [3, 4], 2: [12, 13]}, found, 5))


def grafted(name: str, recovered: float) -> dict[str, Any]:
    """What a model loses by the reconstruction, as `GraftedModel.to_dict` has it."""

    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    effects = {"loss": around(0.25), "kl": around(0.2)}
    shared = {"latents": 2, "loss": around(1.5), "kl": around(1.4)}
    return {
        "name": name,
        "tokens": 1_000,
        "replaced": 750,
        "outliers": 3,
        "loss": around(3.0),
        "effects": {"reconstruction": effects, "zero": effects, "mean": effects},
        "recovered": {"zero": around(0.99), "mean": around(recovered)},
        "left_out": {"exclusive": {"latents": 0}, "shared": shared},
    }


def small_report(**changes: Any) -> ReportData:
    """Six latents of two models, two of them with details."""
    values: dict[str, Any] = {
        "title": "Alpha and Beta",
        "created": "24 November 2026",
        "models": [
            {"name": name, "hookpoint": f"layers.{s + 1}", "width": 8 + s}
            for s, name in enumerate(MODELS)
        ],
        "summary": {
            "arch": "dfc",
            "fve": 0.8,
            "fve_per_source": [0.8, 0.9],
            "fve_without_top5_per_source": [0.78, 0.4],
            "dead_fraction": 1 / 6,
            "dead_fraction_exclusive": [1 / 3, 0.0],
            "mean_l0": 2.0,
            "pairs": 6_000,
            "num_latents": 6,
            "partition": {"exclusive_0": 3, "exclusive_1": 1, "shared": 2},
            "wall_seconds": 90.0,
        },
        "judge": {
            "name": "claude-judge",
            "provider": "anthropic",
            "offline": False,
            "cost": 1.25,
            "requests": 42,
        },
        "features": pa.Table.from_pylist(ROWS, schema=schema()),
        "details": detail,
        "detailed": [0, 3],
        "categories": {"alpha": [CategoryCount("Privacy & Surveillance", 1, 100.0)]},
        "nulls": [NullRate("alpha against itself: exclusive latents kept", 1, 200)],
        "null_scores": [
            null_score("shared", 0, 1.5),
            null_score("shared", 0, 2.5),
            null_score("shared", 0, None),
            null_score("random", 0, 3.0),
        ],
        "stitching": {
            "directions": [
                {"from": 0, "to": 1, "r2": 0.9, "r2_closed_form": 0.91, "r2_without_top5": 0.85},
                {"from": 1, "to": 0, "r2": 0.6, "r2_closed_form": 0.61, "r2_without_top5": 0.3},
            ]
        },
        "filter": {
            "verdicts": [
                {"kept": 1, "predictable": 1, "shadow": 0, "too_rare": 1, "not_linear": 0},
                {"kept": 1, "predictable": 0, "shadow": 0, "too_rare": 0, "not_linear": 0},
            ]
        },
        "baselines": simple_methods(),
        "grafted": {
            "texts": 24,
            "held_out": True,
            "strength": 1.0,
            "models": [grafted(name, 0.95) for name in MODELS],
        },
        "stability": {
            "runs": {"seed-0": "runs/0", "seed-1": "runs/1"},
            "differences": [
                {"source": 0, "members": {"seed-0": 0, "seed-1": 0}},
                {"source": 1, "members": {"seed-1": 1}},
            ],
        },
        "similar": [similar("Names of winter months.", "Questions of law.", 0.05)],
        "provenance": {"train": {"hash": "abc123", "seconds": 90.0, "options": {"seed": 0}}},
        "warnings": ["The budget ended early."],
    }
    return ReportData(**{**values, **changes})


def unjudged_report(**changes: Any) -> ReportData:
    """The same latents where nobody was asked."""
    described = {
        0: {"characteristic_words": "harbour (9 of 10), sails (4 of 10)", "likeness": 0.1},
        1: {"characteristic_words": "frost (3 of 10)", "likeness": 0.6},
        3: {"fires_on": "law (10 of 10)", "promoted_1": "\u201c court\u201d"},
    }
    told = {"fires_on": "ship (7 of 10)", "promoted_0": "\u201c sea\u201d, \u201c boat\u201d"}
    of_a_judge = ("explanation", "flag_status", "harmful", "reason", "category", "detection_score")
    of_a_judge += ("interpretable", "unanswered", *scored(1))
    rows = []
    for one in ROWS:
        kept = {name: value for name, value in one.items() if name not in of_a_judge}
        kept |= described.get(one["latent"], {})
        if "likeness" in kept:
            kept |= {**told, "likeness_spread": 0.05, "effect": 2.0, "sampled": "kept"}
        rows.append(kept)

    def details(latent: int) -> FeatureDetail:
        whole = detail(latent)
        curves = [Curve("alpha and beta", "likeness", STRENGTHS[1:], [0.2, 0.0])]
        return replace(whole, outputs=None, judgements=[], curves=curves, flag_raw=None)

    nulls = [
        {"kind": kind, "source": 0, "status": "measured", "score": None, "likeness": value}
        | {"name": f"{kind}-{n}", "likeness_spread": 0.1, "effect": 1.0}
        for n, (kind, value) in enumerate([("shared", 0.8), ("shared", 0.5), ("random", 0.2)])
    ]
    values: dict[str, Any] = {
        "judge": {"name": "none", "provider": None, "offline": True, "cost": None},
        "features": pa.Table.from_pylist(rows, schema=schema()),
        "details": details,
        "categories": {},
        "null_scores": nulls,
        "similar": [],
    }
    return small_report(**{**values, **changes})


def planted_recall(found: int, of: int, without: int = 0) -> PlantedRecall:
    """Plants at half the median norm, half of them on 1% of the pairs and the others on 0.1%."""
    some = [
        PlantFound(
            kind="random",
            size=0.5,
            frequency=0.01 if number % 2 else 0.001,
            replicate=number,
            source=number % 2,
            pairs=60,
            token=None,
            finding=number < found,
            rank=number + 1 if number < found else None,
            entry="exclusive" if number < found else None,
            score=0.5 if number < found else None,
            cosine=0.99 if number < found else 0.2,
        )
        for number in range(of)
    ]
    nothing = [replace(one, finding=number < without) for number, one in enumerate(some)]
    rounds = [Round(True, some, found + 2, 60.0)]
    return PlantedRecall(rounds, Round(False, nothing, 2, 6.0), [], {}, 300)


def difference(rank: int, latent: int | None, source: int, **values: Any) -> dict[str, Any]:
    """A finding of the list, of an exclusive latent unless it says otherwise."""
    return {
        "rank": rank,
        "kind": "exclusive",
        "source": source,
        "latent": latent,
        "members": [],
        "verdict": "predictable",
        "finding": True,
        "score": 0.5 / rank,
        "firings": 30,
        "texts": 21,
        "pairs": 6_000,
        "dense": False,
        "writers": None,
        "kl": None,
        **values,
    }


def listed_report(rows: list[dict[str, Any]], **changes: Any) -> ReportData:
    """A report without a judge that opens with these differences."""
    places = {one["latent"]: one["rank"] for one in rows}
    table = unjudged_report().features.to_pylist()
    for row in table:
        row["difference"] = places.get(row["latent"])
    features = pa.Table.from_pylist(table, schema=schema())
    searched = Searched(200, 0.15)
    return unjudged_report(differences=rows, searched=searched, features=features, **changes)


def similar(first: str, second: str, correlation: float | None) -> SimilarSummary:
    """One pair of explanations that are alike, of latents that do not fire together."""
    pair = SimilarPair((1, 3), (first, second), 0.66, "tfidf", correlation, False)
    return SimilarSummary((0, 1), 1, 0, [pair])


def hostile_report() -> ReportData:
    """Every text that comes from a model or a corpus means harm."""
    everything = "\n".join(HARMFUL)
    halves = f"{everything}\n{SURROGATE}"

    def hostile_detail(latent: int) -> FeatureDetail:
        tokens = [*HARMFUL, SURROGATE, LONG]
        answers = [[[halves] * len(STRENGTHS)] * 2] * 2
        return FeatureDetail(
            latent=latent,
            contexts=[Context(9.0, None, [tokens, tokens[::-1]], [[9.0] * len(tokens)] * 2)],
            outputs=SteeredOutputs([everything, halves], STRENGTHS, [everything, halves], answers),
            judgements=[Judgement("similarity", halves, 3, halves, "ok")],
            curves=[Curve(halves, halves, STRENGTHS, [1.0, float("nan"), float("inf")])],
            duplicates=[Duplicate(1, None, 0.8)],
            filter={"reason": halves, halves: 0.5},
            flag_raw=halves,
        )

    texts = {
        name: everything
        for name in (
            *("explanation", "reason", "category", "not_scorable", "partition", "sampled"),
            *("fires_on", "characteristic_words", "promoted_0", "suppressed_0", "promoted_1"),
        )
    }
    rows = [{**one, **texts, "filter_verdict": HARMFUL[0]} for one in ROWS]
    models = [{"name": f"{halves}{s}", "hookpoint": halves, "width": 8} for s in (0, 1)]
    return small_report(
        title=halves,
        created=halves,
        models=models,
        judge={"name": halves, "provider": halves, "offline": False, "cost": None, "requests": 1},
        features=pa.Table.from_pylist(rows, schema=schema()),
        details=hostile_detail,
        categories={halves: [CategoryCount(halves, 1, 100.0)]},
        nulls=[NullRate(halves, 1, 200)],
        similar=[similar(halves, halves, None)],
        provenance={halves: {"hash": halves, "seconds": 1.0, "options": {halves: halves}}},
        warnings=[halves],
    )
