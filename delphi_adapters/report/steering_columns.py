"""What steering with a direction came to, for the table of latents and for what they are beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify_crosscoder.permutation import rank_p

from ..audit.likeness import DirectionLikeness
from ..audit.stages.exclusivity import Listed, Verified
from ..judging.exclusivity import Exclusivity


def steering_columns(verified: Verified) -> dict[int, dict[str, Any]]:
    """Columns of the table, by latent; of none that was steered only to be compared with."""
    found = {
        one.latent: _judged(one, result, verified)
        for one, result in verified.scored
        if one.latent is not None and result.kind == "feature"
    }
    return found | {
        one.latent: _measured(one, verified)
        for one in verified.measured
        if one.latent is not None and one.kind == "feature"
    }


def null_scores(
    verified: Verified, interpretable: Mapping[int, bool | None]
) -> list[dict[str, Any]]:
    """The same of shared latents and random directions, as `ReportData.null_scores`.

    `interpretable` says of latents whether they passed the detection test, if they were asked
    about.
    """
    return [
        *(
            _null_score(result, None if one.latent is None else interpretable.get(one.latent))
            for one, result in verified.scored
            if result.kind != "feature"
        ),
        *(_null_likeness(one) for one in verified.measured if one.kind != "feature"),
    ]


def _judged(one: Listed, result: Exclusivity, verified: Verified) -> dict[str, Any]:
    beside = [other for _, other in verified.scored if _random(other, result.source)]
    clear = [other.interpretability for other in beside]
    return {
        "exclusivity": result.score,
        "exclusivity_spread": result.spread,
        "exclusivity_blinded": result.blinded_score,
        "steering_interpretability": result.interpretability,
        "exclusivity_status": result.status,
        "effect_p": _effect_p(result.interpretability, clear),
        "sampled": one.why,
    }


def _measured(one: DirectionLikeness, verified: Verified) -> dict[str, Any]:
    effects = [other.effect for other in verified.measured if _random(other, one.source)]
    return {
        "likeness": one.likeness,
        "likeness_spread": one.spread,
        "effect": one.effect,
        "effect_p": _effect_p(one.effect, effects),
        "sampled": one.why,
    }


def _random(one: Exclusivity | DirectionLikeness, source: int) -> bool:
    return one.kind == "random" and one.source == source


def _effect_p(value: float | None, random: Sequence[float | None]) -> float | None:
    """Of an effect among those of random directions; None where there is none to compare."""
    known = [one for one in random if one is not None]
    return rank_p(value, known) if known and value is not None else None


def _null_score(result: Exclusivity, interpretable: bool | None) -> dict[str, Any]:
    names = ("name", "kind", "source", "status", "score", "blinded_score", "spread")
    found = {name: getattr(result, name) for name in (*names, "interpretability")}
    return {**found, "interpretable": interpretable}


def _null_likeness(one: DirectionLikeness) -> dict[str, Any]:
    names = ("name", "kind", "source", "likeness", "effect")
    return {
        **{name: getattr(one, name) for name in names},
        "likeness_spread": one.spread,
        "status": "measured",
        "score": None,
    }
