"""A report of made-up latents, as large as asked for."""

from __future__ import annotations

import random

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
    SteeredOutputs,
)

MODELS = ["SmolLM2-135M-Instruct", "gemma-3-270m"]
TEXT = """
the a of and to in is it for that on with as was at by from an are this or be which not have history
river model trade language council winter engine protein market border treaty music signal kitchen
harbour physics election garden lawyer method vaccine forest railway argument colour weather
identity copyright refusal science policy translation numbers names questions
"""
WORDS = TEXT.split()
CATEGORIES = ["Privacy & Surveillance", "Financial Fraud", "Psychological Manipulation"]
PROMPTS = [
    "What is on your mind?",
    "Tell me something about the sea.",
    "What would you like to talk about?",
]
STRENGTHS = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]


def made_up_report(
    num_latents: int, detailed: int, contexts: int = 5, tokens: int = 32, seed: int = 0
) -> ReportData:
    """A report of so many latents, the first ones of each model with details.

    An eighth of the latents is exclusive to either model. Nearly all exclusive latents and one in
    ten of the others have an explanation, as where they were all looked at.
    """
    rng = random.Random(seed)
    exclusive = num_latents // 8
    verdicts = [dict.fromkeys(("kept", "predictable", "shadow", "too_rare", "not_linear"), 0)] * 2
    verdicts = [dict(one) for one in verdicts]
    rows = [_row(rng, latent, num_latents, exclusive, verdicts) for latent in range(num_latents)]
    chosen = [row["latent"] for row in rows if row.get("explanation")][:detailed]
    rest = set(range(num_latents)) - set(chosen)
    chosen += sorted(rest)[: max(detailed - len(chosen), 0)]

    def details(latent: int) -> FeatureDetail:
        return _detail(random.Random(latent), latent, num_latents, contexts, tokens)

    return ReportData(
        title="What differs between SmolLM2 and Gemma",
        created="24 November 2026, 10:00",
        models=[
            {"name": f"models/{name}", "hookpoint": f"layers.{layer}", "width": width}
            for name, layer, width in zip(MODELS, (15, 9), (576, 640), strict=True)
        ],
        summary={
            "arch": "dfc",
            "fve": 0.868,
            "fve_per_source": [0.817, 0.917],
            "fve_without_top5_per_source": [0.791, 0.785],
            "dead_fraction": 0.12,
            "dead_fraction_exclusive": [0.41, 0.18],
            "mean_l0": 31.6,
            "pairs": 716_800,
            "num_latents": num_latents,
            "partition": {
                "exclusive_0": exclusive,
                "exclusive_1": exclusive,
                "shared": num_latents - 2 * exclusive,
            },
            "wall_seconds": 215.0,
        },
        judge={
            "name": "claude-opus-4-1",
            "provider": "anthropic",
            "offline": False,
            "cost": 12.5,
            "requests": 48_211,
        },
        features=pa.Table.from_pylist(rows, schema=schema()),
        details=details,
        detailed=chosen,
        categories={
            name: [
                CategoryCount(one, n, 100 * n / 60)
                for one, n in zip(CATEGORIES, (30, 20, 10), strict=True)
            ]
            for name in MODELS
        },
        nulls=[
            NullRate("SmolLM2 against itself: exclusive latents kept", 0, 410),
            NullRate("SmolLM2 against itself, rotated: exclusive latents kept", 3, 396),
        ],
        null_scores=[_null(rng, kind, s, i) for s in (0, 1) for kind in KINDS for i in range(24)],
        stitching={
            "directions": [
                {"from": 0, "to": 1, "r2": 0.71, "r2_closed_form": 0.715, "r2_without_top5": 0.5},
                {"from": 1, "to": 0, "r2": 0.66, "r2_closed_form": 0.662, "r2_without_top5": 0.47},
            ]
        },
        filter={"verdicts": verdicts},
        stability={
            "runs": {"seed-0": "runs/seed-0", "seed-1": "runs/seed-1", "seed-2": "runs/seed-2"},
            "differences": [
                {"source": i % 2, "members": {f"seed-{r}": i for r in range(1 + i % 3)}}
                for i in range(40)
            ],
        },
        similar=[
            SimilarSummary(
                (0, 1),
                pairs=2,
                confirmed=1,
                listed=[
                    SimilarPair(
                        (i, exclusive + i),
                        (_sentence(rng), _sentence(rng)),
                        0.7 - i / 10,
                        "tfidf",
                        0.8 - i / 2,
                    )
                    for i in range(2)
                ],
            )
        ],
        provenance={
            stage: {
                "hash": f"{rng.getrandbits(48):012x}",
                "seconds": seconds,
                "options": {"seed": 0},
            }
            for stage, seconds in (("harvest", 167.0), ("train", 215.0), ("explain", 3_204.5))
        },
        warnings=["Half of the budget was spent before all latents were explained."],
    )


KINDS = ("shared", "random")


def _row(
    rng: random.Random, latent: int, total: int, exclusive: int, verdicts: list[dict[str, int]]
) -> dict[str, object]:
    source = 0 if latent < exclusive else 1 if latent < 2 * exclusive else None
    dead = rng.random() < 0.1
    firings = 0 if dead else int(rng.lognormvariate(6, 2))
    asked = not dead and (source is not None or rng.random() < 0.1)
    norm = {0: 1.0, 1: 0.0, None: min(max(rng.gauss(0.5, 0.09), 0.0), 1.0)}[source]
    row: dict[str, object] = {
        "latent": latent,
        "name": f"layers.15+layers.9_latent{latent}",
        "partition": "shared" if source is None else f"exclusive_{source}",
        "source": source,
        "relative_decoder_norm": norm,
        "firings": firings,
        "frequency": firings / 716_800,
        "dead": dead,
        "s_max": 0.0 if dead else rng.uniform(1, 60),
        "sampled": None,
    }
    if asked:
        harmful = rng.random() < 0.06
        score = rng.choice(range(9, 21)) / 20
        row |= {
            "explanation": _sentence(rng, 24),
            "flag_status": "ok" if rng.random() < 0.97 else "unparsable",
            "harmful": harmful,
            "reason": _sentence(rng, 18),
            "category": rng.choice(CATEGORIES) if harmful else None,
            "detection_score": score,
            "interpretable": score >= 0.8,
            "unanswered": 0,
        }
    if source is not None:
        verdict = rng.choices(list(verdicts[0]), (2, 5, 1, 3, 1))[0]
        verdicts[source][verdict] += 1
        row |= {
            "filter_verdict": verdict,
            "filter_score": rng.uniform(0.1, 0.9) if verdict == "kept" else 0.0,
        }
        if asked and (row["harmful"] or rng.random() < 0.1):
            row |= _scores(rng, 3.4)
            row["sampled"] = "flagged" if row["harmful"] else "sample"
    return row


def _scores(rng: random.Random, level: float) -> dict[str, object]:
    if rng.random() < 0.3:
        clear = {"steering_interpretability": rng.choice([1.0, 1.67, 2.33])}
        return {**clear, "exclusivity_status": "not_interpretable"}
    score = min(max(rng.gauss(level, 0.9), 1.0), 5.0)
    return {
        "exclusivity": score,
        "exclusivity_spread": rng.uniform(0, 1),
        "exclusivity_blinded": min(max(score + rng.gauss(0, 0.5), 1.0), 5.0),
        "steering_interpretability": rng.choice([3.0, 3.67, 4.33, 5.0]),
        "exclusivity_status": "scored",
    }


def _null(rng: random.Random, kind: str, source: int, number: int) -> dict[str, object]:
    found = _scores(rng, 2.2 if kind == "shared" else 2.9)
    return {
        "name": f"{kind}-{source}-{number}",
        "kind": kind,
        "source": source,
        "status": found["exclusivity_status"],
        "score": found.get("exclusivity"),
        "blinded_score": found.get("exclusivity_blinded"),
        "spread": found.get("exclusivity_spread"),
        "interpretability": found["steering_interpretability"],
    }


def _detail(
    rng: random.Random, latent: int, total: int, contexts: int, tokens: int
) -> FeatureDetail:
    judgements = [
        Judgement(question, prompt, rng.randint(1, 5), _sentence(rng, 20), "ok")
        for prompt in PROMPTS
        for question in ("interpretability", "similarity", "similarity, blinded")
    ]
    curves = []
    for model in MODELS:
        slope = rng.uniform(0, 0.4)
        mean = [1 + slope * strength for strength in STRENGTHS]
        low, high = [x - 0.3 for x in mean], [x + 0.3 for x in mean]
        curves.append(Curve(model, "alignment", STRENGTHS, mean, low, high))
    return FeatureDetail(
        latent=latent,
        contexts=[_context(rng, tokens) for _ in range(contexts)],
        outputs=SteeredOutputs(
            PROMPTS,
            STRENGTHS,
            MODELS,
            [[[_sentence(rng, 40) for _ in STRENGTHS] for _ in PROMPTS] for _ in MODELS],
        ),
        judgements=judgements,
        curves=curves,
        duplicates=[Duplicate((latent + 1) % total, None, rng.uniform(0.7, 1))],
        filter={"r2_own": rng.uniform(0.05, 0.8), "r2_others": rng.uniform(0, 0.4), "shadow": 0.02},
        flag_raw=f"[HARMFUL]: no\n[REASON]: {_sentence(rng, 18)}",
    )


def _context(rng: random.Random, tokens: int) -> Context:
    sides = [[" " + rng.choice(WORDS) for _ in range(tokens + s)] for s in (0, 2)]
    peak = rng.randrange(tokens)
    strength = rng.uniform(5, 50)
    acts = [
        [strength / (1 + abs(i - peak)) if abs(i - peak) < 4 else 0.0 for i in range(len(side))]
        for side in sides
    ]
    return Context(strength, rng.randrange(10_000), sides, acts)


def _sentence(rng: random.Random, words: int = 14) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."
