"""From the outputs of an audit's stages to what a report is made of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsify_crosscoder.evaluation.filter import FilterRecord
from sparsify_crosscoder.evaluation.latent_cards import cards_of, recurrences
from sparsify_crosscoder.evaluation.several_runs import compare_runs
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.harvest.model_identity import short_names, source_names
from sparsify_crosscoder.runs.run import Run

from ..audit.likeness import DirectionLikeness
from ..audit.runner import fingerprint
from ..audit.stage import Context as Audit
from ..audit.stages.cache import Cache
from ..audit.stages.describe import Describe
from ..audit.stages.exclusivity import Exclusivity as ExclusivityStage
from ..audit.stages.explain import Explain
from ..audit.stages.filter import Filter, FilterOptions
from ..audit.stages.graft import Graft
from ..audit.stages.null import Null
from ..audit.stages.rubrics import Rated, Rubrics
from ..audit.stages.stitch import Stitch
from ..audit.stages.train import Train
from ..causes.equivalence import SharedEffects
from ..causes.patch import Patch
from ..clients.judge import NO_JUDGE
from ..explaining import flagging
from ..explaining.descriptions import table_columns
from ..explaining.features import features
from ..explaining.summary import summarise_table
from ..judging.exclusivity import Exclusivity
from ..judging.rating import Rating
from .baseline_stage import BaselineMethods
from .causes import with_equivalence
from .coherent import coherent_count, without_gibberish
from .data import (
    Context,
    Curve,
    Duplicate,
    FeatureDetail,
    Judgement,
    NullRate,
    Question,
    ReportData,
    Searched,
    SteeredOutputs,
)
from .passages import passages
from .power import Power
from .steering_columns import null_scores, steering_columns

MEASURES = {
    "kl": "change of the next token (KL, nats)",
    "surprise": "surprise of the unsteered model (nats per token)",
    "repetition": "repetition (share of runs of three tokens)",
}


def report_data(
    audit: Audit, stability: dict[str, Any] | None, gibberish: bool = False
) -> ReportData:
    """All that the report says, from what the other stages give.

    `stability` is what the comparison with other runs came to. With `gibberish` steered answers are
    shown that are no text any more.
    """
    explained, filters = audit.output(Explain), audit.output(Filter)
    autointerp, verified = explained.autointerp, audit.output(ExclusivityStage)
    exclusivity = steering_columns(verified)
    described = table_columns(audit.output(Describe))
    differences = _rated(audit, filters.differences)
    again = {} if stability is None else recurrences(stability, audit.run.path)
    shared = audit.output(SharedEffects)
    cards = cards_of(audit.crosscoder, filters, differences, again)
    cards = with_equivalence(cards, shared)
    table = features(autointerp, audit.crosscoder, filters, exclusivity, described, cards)
    passed = {row["latent"]: row["interpretable"] for row in table.to_pylist()}
    summary = summarise_table(autointerp, audit.crosscoder, explained.latents, table, filters)
    return ReportData(
        title=" and ".join(source_names(audit.crosscoder.sources)) + ": what differs",
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        models=[dict(source) for source in audit.crosscoder.sources],
        summary=audit.output(Train).to_dict(),
        judge=_judge(audit),
        features=table,
        details=Details(audit, explained.latents, gibberish),
        detailed=explained.latents,
        compared=explained.compared,
        categories=summary.categories,
        nulls=_null_rates(audit),
        null_scores=null_scores(verified, passed),
        stitching={} if (maps := audit.output(Stitch)) is None else maps.report,
        filter={"verdicts": filters.verdicts},
        differences=differences,
        searched=_searched(filters),
        baselines=audit.output(BaselineMethods),
        grafted=audit.output(Graft) or {},
        patched=audit.output(Patch) or {},
        shared_effects=shared,
        power=audit.output(Power),
        stability=stability,
        similar=summary.similar,
        provenance={
            stage: {
                "hash": fingerprint(record.inputs),
                "seconds": record.seconds,
                "options": record.inputs["options"],
            }
            for stage, record in audit.records.items()
        },
        warnings=_warnings(audit),
    )


class Details:
    """What the page of each explained latent shows."""

    def __init__(self, audit: Audit, latents: Sequence[int], gibberish: bool = False):
        self.audit, self.latents, self.gibberish = audit, list(latents), gibberish
        self.verified = audit.output(ExclusivityStage)
        self.scored = self.verified.of_latents()
        self.measured = {
            one.latent: one for one in self.verified.measured if one.latent is not None
        }
        self.autointerp = audit.output(Explain).autointerp
        self.flags = flagging.load_flags(self.autointerp.folder)
        filters = audit.output(Filter)
        self.filtered, self.pairs = filters.latents, filters.duplicates

    def __call__(self, latent: int) -> FeatureDetail:
        flag = self.flags.get(self.autointerp.name(latent))
        result, judged = self.scored.get(latent), self.filtered.get(latent)
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
            {} if judged is None else dict(judged.measured),
            "\n\n".join(flag.raw) if flag else None,
        )

    @cached_property
    def contexts(self) -> dict[int, list[Context]]:
        return passages(self.audit.output(Cache), self.latents)

    def _steered(self, result: Exclusivity | None) -> tuple[SteeredOutputs | None, list[Curve]]:
        if result is None:
            return None, []
        steered = self.verified.steered(result.name)
        models = short_names([one["model"] for one in steered])
        first = steered.original
        outputs = SteeredOutputs(
            first["prompts"], first["strengths"], models, [one["answers"] for one in steered]
        )
        if not self.gibberish:
            counts = [coherent_count(one["strengths"], one["measures"]) for one in steered]
            outputs = without_gibberish(outputs, counts)
        curves = [
            Curve(model, meaning, one["strengths"], _means(one["measures"][name]))
            for name, meaning in MEASURES.items()
            for model, one in zip(models, steered, strict=True)
        ]
        rated = [one for one in self.audit.output(Rubrics) if one.latent == result.name]
        return outputs, [*curves, *(curve for one in rated for curve in rubric_curves(one))]

    def _compared(self, one: DirectionLikeness) -> list[Curve]:
        names = [self.audit.model_name(s) for s in (one.source, 1 - one.source)]
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
            if latent in pair.latents:
                (other,) = (one for one in pair.latents if one != latent)
                judged = self.filtered.get(other)
                source = None if judged is None else judged.source
                found.append(Duplicate(other, source, pair.correlation))
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


def rubric_curves(rated: Rated) -> list[Curve]:
    """The curves of a rubric's dimensions, at the strengths at which there is a rating."""
    found = []
    for dimension, of_models in rated.curves.items():
        label = f"{rated.rubric}: {dimension}".replace("_", " ").lower()
        for model, curve in of_models.items():
            parts = (curve["strengths"], curve["mean"], curve["low"], curve["high"])
            known = [row for row in zip(*parts, strict=True) if row[1] is not None]
            if known:
                strengths, mean, low, high = map(list, zip(*known, strict=True))
                found.append(Curve(model, label, strengths, mean, low, high))
    return found


def _searched(filters: FilterRecord) -> Searched | None:
    found = filters.found
    if "rows" not in found:
        return None
    untold = {one["source"]: one["left"] for one in found["residuals"] if one["reference"] is None}
    return Searched(found["difference_texts"], found["mean_kl"], untold)


def _null_rates(audit: Audit) -> list[NullRate]:
    found = audit.output(Null)
    if found is None:
        return []
    return [
        NullRate(f"{one.name}: findings among what could be listed", one.findings, one.tested)
        for one in found.nulls
    ]


def _rated(audit: Audit, differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The list with the error rates that nulls give it."""
    found = audit.output(Null)
    rates = {} if found is None else found.rates
    rated = []
    for row in differences:
        rate, known = rates.get(row["rank"]), {"q_value": None, "q_interval": None}
        if rate is not None:
            known = {"q_value": rate["q_value"], "q_interval": [rate["low"], rate["high"]]}
        rated.append({**row, **known})
    return rated


def _judge(audit: Audit) -> dict[str, Any]:
    if not audit.judged:
        return {"name": NO_JUDGE, "provider": None, "offline": True, "cost": None, "requests": None}
    offline = audit.config.judge.local
    paid = audit.output(ExclusivityStage).paid
    return {
        "name": Path(audit.config.judge.model).name,
        "provider": audit.config.judge.asked_through,
        "offline": offline,
        "cost": 0.0 if offline else paid and paid.dollars,
        "requests": None if offline else paid and paid.requests,
    }


def stability(audit: Audit, runs: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Compare the run with others, and keep what that comes to in the folder."""
    config = audit.options(FilterOptions).config(audit.run.config.outlier_multiple)
    access = {
        "token": audit.config.hf_token,
        "trust_remote_code": audit.config.trust_remote_code,
    }
    others = [Run.open(path, **access) for path in runs]
    compared = compare_runs([audit.run, *others], config, device=audit.device)
    print(compared.text())
    found = compared.to_dict()
    atomic_write_json(folder / "stability.json", found)
    return found


def _warnings(audit: Audit) -> list[str]:
    found = [
        f"{stage}: {record.unfinished}. The same command asks again."
        for stage, record in audit.records.items()
        if record.unfinished
    ]
    if not audit.judged:
        found.append(
            "There was no judge: no explanation was written, no latent was flagged or sorted into "
            "a category, and no answer was rated. Latents are described by words and tokens, "
            "counted and computed; exclusivity is the likeness of what steering does to both "
            "models. The same command with --judge adds the rest."
        )
    for source, why in audit.output(Describe).left_out.items():
        found.append(f"No promoted tokens of {audit.run.ends[source].model}: {why}.")
    verified = audit.output(ExclusivityStage)
    if verified.left_out is not None:
        found.append(f"Nothing was steered and compared: {verified.left_out}")
        return found
    chosen = verified.chosen
    if chosen.sampled_from == "explained" and chosen.sample:
        found.append(
            "No other latent passed the detection test, so the sample was drawn from all that "
            "were explained."
        )
    candidates = chosen.flagged + chosen.listed + chosen.kept
    if candidates > chosen.verified:
        found.append(
            f"Of {candidates:,} latents that are flagged, that listed differences are named by or "
            f"that the filter keeps, {chosen.verified:,} were verified (--verify)."
        )
    return found


def _means(per_prompt: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*per_prompt, strict=True)]
