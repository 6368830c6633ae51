"""From the folders of the other stages to the report."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsify_crosscoder.evaluation.top import source_labels
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.harvest.model_identity import short_names, source_names

from ..clients.judge import NO_JUDGE
from ..explaining import flagging
from ..explaining.descriptions import table_columns
from ..explaining.features import features
from ..explaining.summary import summarise_table
from ..judging import exclusivity as exclusivity_files
from ..judging.exclusivity import Exclusivity
from ..judging.rating import Rating
from ..report import write_report
from ..report.data import (
    Context,
    Curve,
    Duplicate,
    FeatureDetail,
    Judgement,
    NullRate,
    Question,
    ReportData,
    SteeredOutputs,
)
from ..report.first import first_entries
from .describe_stage import load_descriptions
from .explain_stages import filtered
from .likeness_stage import DirectionLikeness, load_likeness
from .passages import passages
from .rubric_stage import rubric_curves
from .stages import Outcome, fingerprint
from .verify_stages import STEERED, read_steered
from .workspace import Workspace

MEASURES = {
    "kl": "change of the next token (KL, nats)",
    "surprise": "surprise of the unsteered model (nats per token)",
    "repetition": "repetition (share of runs of three tokens)",
}


def report_inputs(work: Workspace) -> dict[str, Any]:
    return {"stability_runs": [str(run) for run in work.args.stability_runs]}


def report(work: Workspace, folder: Path) -> Outcome:
    """Bring everything together and write the page and the tables."""
    data = report_data(work, folder)
    write_report(data, work.out)
    print("\n".join(first_entries(data)))
    written = [work.out / name for name in ("report.html", "report.md", "features.parquet")]
    return Outcome(
        {"features": data.features.num_rows, "detailed": len(data.detailed)},
        outputs=written,
        identity=[path.stat().st_size for path in written],
    )


def report_data(work: Workspace, folder: Path) -> ReportData:
    """All that the report says, from the folders of the other stages."""
    latents = work.records["explain"].result["latents"]
    autointerp, filters = work.autointerp(), filtered(work)
    verified, measured = _verified(work), load_likeness(work.folder("exclusivity"))
    exclusivity = {
        direction["latent"]: _columns(result, direction["why"])
        for direction, result in verified
        if result.kind == "feature"
    }
    exclusivity |= {one.latent: _likeness(one) for one in measured if one.kind == "feature"}
    described = table_columns(load_descriptions(work))
    table = features(autointerp, work.crosscoder, filters, exclusivity, described)
    summary = summarise_table(autointerp, work.crosscoder, latents, table, filters)
    compared = {one.latent: one for one in measured if one.latent is not None}
    details = Details(work, latents, filters, by_latent(verified), compared)
    return ReportData(
        title=" and ".join(source_names(work.crosscoder.sources)) + ": what differs",
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        models=[dict(source) for source in work.crosscoder.sources],
        summary=work.records["train"].result["summary"],
        judge=_judge(work),
        features=table,
        details=details,
        detailed=details.latents,
        categories=summary["categories"],
        nulls=_null_rates(work),
        null_scores=[
            *(_null_score(result) for _, result in verified if result.kind != "feature"),
            *(_null_likeness(one) for one in measured if one.kind != "feature"),
        ],
        stitching=work.records["stitch"].result["report"],
        filter=filters,
        stability=_stability(work, folder),
        similar=summary["similar"],
        provenance={
            stage: {
                "hash": fingerprint(record.inputs),
                "seconds": record.seconds,
                "options": record.inputs["options"],
            }
            for stage, record in work.records.items()
        },
        warnings=_warnings(work),
    )


class Details:
    """What the page of each explained latent shows."""

    def __init__(
        self,
        work: Workspace,
        latents: Sequence[int],
        filters: Mapping[str, Any],
        verified: Mapping[int, Exclusivity],
        measured: Mapping[int, DirectionLikeness],
    ):
        self.work, self.latents = work, list(latents)
        self.verified, self.measured = verified, measured
        self.autointerp = work.autointerp()
        self.flags = flagging.load_flags(work.folder("explain"))
        self.rows = {row["latent"]: row for row in filters["latents"]}
        self.owners = {row["latent"]: row["source"] for row in filters["latents"]}
        self.pairs = filters["duplicates"]

    def __call__(self, latent: int) -> FeatureDetail:
        flag = self.flags.get(self.autointerp.name(latent))
        result = self.verified.get(latent)
        outputs, curves = self._steered(result)
        if latent in self.measured:
            curves = self._compared(self.measured[latent])
        return FeatureDetail(
            latent,
            self.contexts[latent],
            outputs,
            [] if result is None else judgements(result),
            curves,
            self._duplicates(latent),
            self.rows.get(latent, {}),
            "\n\n".join(flag.raw) if flag else None,
        )

    @cached_property
    def contexts(self) -> dict[int, list[Context]]:
        return passages(self.work.cache, self.latents)

    def _steered(self, result: Exclusivity | None) -> tuple[SteeredOutputs | None, list[Curve]]:
        if result is None:
            return None, []
        steered = read_steered(self.work.folder("exclusivity") / STEERED, result.name)
        models = short_names([one["model"] for one in steered])
        outputs = SteeredOutputs(
            steered[0]["prompts"],
            steered[0]["strengths"],
            models,
            [one["answers"] for one in steered],
        )
        curves = [
            Curve(model, meaning, one["strengths"], _means(one["measures"][name]))
            for name, meaning in MEASURES.items()
            for model, one in zip(models, steered, strict=True)
        ]
        return outputs, [*curves, *rubric_curves(self.work, result.name)]

    def _compared(self, one: DirectionLikeness) -> list[Curve]:
        names = [self.work.model_name(s) for s in (one.source, 1 - one.source)]
        curves = [
            Curve(name, MEASURES["kl"], one.strengths, [statistics.fmean(row) for row in values])
            for name, values in zip(names, one.kl, strict=True)
        ]
        both = [statistics.fmean(row) for row in one.correlation]
        label = "likeness of both models' changes (correlation)"
        return [*curves, Curve(" and ".join(names), label, one.strengths, both)]

    def _duplicates(self, latent: int) -> list[Duplicate]:
        found = []
        for pair in self.pairs:
            if latent in pair["latents"]:
                (other,) = (one for one in pair["latents"] if one != latent)
                found.append(Duplicate(other, self.owners.get(other), pair["correlation"]))
        return found


def judgements(result: Exclusivity) -> list[Judgement]:
    """Every rating that the judge was asked for."""
    found = []
    for one in result.prompts:
        asked: list[tuple[Question, str, Rating | None]] = [
            ("interpretability", "INTERPRETABILITY", one.interpretability),
            ("similarity", "SIMILARITY", one.similarity),
            ("similarity, blinded", "SIMILARITY", one.blinded),
        ]
        for question, scale, rating in asked:
            if rating is not None:
                score = rating.scores.get(scale)
                found.append(Judgement(question, one.prompt, score, rating.reason, rating.status))
    return found


def _verified(work: Workspace) -> list[tuple[dict[str, Any], Exclusivity]]:
    """Every direction that was steered, and what the judge said of it; nothing without one."""
    if not work.judged:
        return []
    results = exclusivity_files.load(work.folder("exclusivity"))
    listed = work.records["exclusivity"].result["directions"]
    return [(direction, results[direction["name"]]) for direction in listed]


def by_latent(
    verified: Sequence[tuple[Mapping[str, Any], Exclusivity]],
) -> dict[int, Exclusivity]:
    """What was verified of latents; a random direction has no latent."""
    return {d["latent"]: result for d, result in verified if d["latent"] is not None}


def _columns(result: Exclusivity, why: str) -> dict[str, Any]:
    return {
        "exclusivity": result.score,
        "exclusivity_spread": result.spread,
        "exclusivity_blinded": result.blinded_score,
        "steering_interpretability": result.interpretability,
        "exclusivity_status": result.status,
        "sampled": why,
    }


def _null_score(result: Exclusivity) -> dict[str, Any]:
    names = ("name", "kind", "source", "status", "score", "blinded_score", "spread")
    return {name: getattr(result, name) for name in (*names, "interpretability")}


def _likeness(one: DirectionLikeness) -> dict[str, Any]:
    return {
        "likeness": one.likeness,
        "likeness_spread": one.spread,
        "effect": one.effect,
        "sampled": one.why,
    }


def _null_likeness(one: DirectionLikeness) -> dict[str, Any]:
    names = ("name", "kind", "source", "likeness", "effect")
    return {
        **{name: getattr(one, name) for name in names},
        "likeness_spread": one.spread,
        "status": "measured",
        "score": None,
    }


def _null_rates(work: Workspace) -> list[NullRate]:
    found = work.records["null"].result
    if "kept" not in found:
        return []
    name = source_labels(work.crosscoder)[0]
    return [
        NullRate(
            f"{name} against itself: exclusive latents that the filter keeps",
            found["kept"],
            found["exclusive"],
        )
    ]


def _judge(work: Workspace) -> dict[str, Any]:
    if not work.judged:
        return {"name": NO_JUDGE, "provider": None, "offline": True, "cost": None, "requests": None}
    name = str(work.args.judge)
    offline = work.args.provider == "transformers" or (
        work.args.provider is None and not name.startswith("claude")
    )
    counted = work.records["exclusivity"].result["ledger"] or {}
    return {
        "name": Path(name).name,
        "provider": "transformers" if offline else "anthropic",
        "offline": offline,
        "cost": 0.0 if offline else counted["spent"] + counted["earlier"] + counted["uncertain"],
        "requests": None if offline else sum(counted["outcomes"].values()),
    }


def _stability(work: Workspace, folder: Path) -> dict[str, Any] | None:
    if not work.args.stability_runs:
        return None
    from sparsify_crosscoder.commands import stability as stability_command

    cfg = work.filter_config
    found = stability_command.run(
        argparse.Namespace(
            runs=[work.run, *work.args.stability_runs],
            device=str(work.device),
            hf_token=work.args.hf_token,
            trust_remote_code=work.args.trust_remote_code,
            pairs=cfg.pairs,
            predictability=cfg.predictability,
            shadow=cfg.shadow,
            min_firings=cfg.min_firings,
        )
    )
    atomic_write_json(folder / "stability.json", found)
    return found


def _warnings(work: Workspace) -> list[str]:
    found = [
        f"{stage}: {record.unfinished}. The same command asks again."
        for stage, record in work.records.items()
        if record.unfinished
    ]
    if not work.judged:
        found.append(
            "There was no judge: no explanation was written, no latent was flagged or sorted into "
            "a category, and no answer was rated. Latents are described by words and tokens, "
            "counted and computed; exclusivity is the likeness of what steering does to both "
            "models. The same command with --judge adds the rest."
        )
    left_out = work.records["describe"].result["left_out"]
    found += [f"No promoted tokens of {model}: {why}." for model, why in left_out.items()]
    chosen = work.records["exclusivity"].result
    if chosen["sampled_from"] == "explained" and chosen["sample"]:
        found.append(
            "No other latent passed the detection test, so the sample was drawn from all that "
            "were explained."
        )
    candidates = chosen["flagged"] + chosen["kept"]
    if candidates > chosen["verified"]:
        found.append(
            f"Of {candidates:,} latents that are flagged or that the filter keeps, "
            f"{chosen['verified']:,} were verified (--verify)."
        )
    return found


def _means(per_prompt: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*per_prompt, strict=True)]
