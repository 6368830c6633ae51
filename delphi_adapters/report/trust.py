"""How far a report is to be trusted, as its own numbers tell.

Every statement has a number, what it means, and a level. The levels' limits are our own judgement,
written once below: they say where to look, not what is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparsify_crosscoder.intervals import rate_interval
from sparsify_crosscoder.permutation import BEYOND_CHANCE, group_p
from sparsify_crosscoder.scorability import LITTLE

from ..clients.judge import NO_JUDGE
from .chance import (
    difference_interval,
    rank_correlation,
    reliability,
    superiority,
)
from .data import NullRate

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.planted_recall import PlantedRecall

Level = Literal["good", "caution", "bad"]

ENOUGH_NULLS = 5  # fewer, and an interval of them means nothing
ENOUGH_SCORED = 30
PAPERS_PAIRS_PER_LATENT = 100_000_000 / 131_072  # 3.3 and B.1
FIRINGS = 200  # fewer, and the filter has no verdict
LEVELS: tuple[Level, ...] = ("bad", "caution", "good")


@dataclass(frozen=True)
class Statement:
    """One thing to know before believing the report."""

    about: str
    level: Level
    number: str
    """What was measured, in a few words."""

    meaning: str
    """What that does to the report's results."""


def graded(value: float, good: float, caution: float) -> Level:
    """ "good" from `good` on, "caution" from `caution` on; the other way round if good is less."""
    sign = 1 if good >= caution else -1
    if sign * value >= sign * good:
        return "good"
    return "caution" if sign * value >= sign * caution else "bad"


def judge(facts: Mapping[str, Any]) -> Statement:
    """Who judged: one that runs on the own machine is mostly a small model."""
    name = facts.get("name") or "unknown"
    about = "The judge"
    if not facts.get("name"):
        return Statement(about, "caution", "not known", "No judge is named: see which one it was.")
    if name == NO_JUDGE:
        return Statement(
            about,
            "caution",
            "none was asked",
            "No explanation was written and nothing was flagged, sorted or rated: words, promoted "
            "tokens and likeness are counted and computed, and what they mean is for the reader to "
            "say. Tokens that a direction promotes are read off the unembedding at once, as if no "
            "later layer changed it.",
        )
    if facts.get("offline"):
        return Statement(
            about,
            "caution",
            f"{name}, a local model",
            "Explanations, flags, categories, detection and exclusivity scores are only as good as "
            "this judge, and small models are bad ones: their numbers may mean little. Norms, "
            "the filter, reconstruction and stitching do not depend on it.",
        )
    return Statement(
        about,
        "good",
        f"{name}, asked through {facts.get('provider') or 'an API'}",
        "Explanations, flags and scores are one model's opinion; another judge may differ.",
    )


def answered(what: str, statuses: Sequence[str | None], without: Sequence[str]) -> Statement | None:
    """Share of questions to which the judge gave nothing that could be read.

    `statuses` are those of every latent or direction, None where it was not asked; `without` are
    the ones that stand for no answer. None if nothing was asked.
    """
    asked = [one for one in statuses if one is not None]
    if not asked:
        return None
    missing = sum(one in without for one in asked)
    level = graded(missing / len(asked), 0.02, 0.1)
    meaning = (
        "Nearly every question has an answer that could be read."
        if level == "good"
        else "What has no answer is neither good nor bad; it is missing from every count, and may "
        "be just what the judge would not speak about."
    )
    number = f"{missing:,} of {len(asked):,} without an answer ({missing / len(asked):.1%})"
    return Statement(f"Answers: {what}", level, number, meaning)


def detection(
    scores: Sequence[float], held_out: Sequence[float] = (), quantiles: Sequence[float] = ()
) -> Statement | None:
    """Whether explanations tell more than a coin; None without scores.

    `scores` are of the passages that explanations were written from, `held_out` of ranks 11 to 20
    and `quantiles` of all weaker ones, of those latents that passed by the first.
    """
    if not scores:
        return None
    middle = median(scores)
    level = graded(middle, 0.7, 0.6)
    number = (
        f"median detection score {middle:.2f} of {len(scores):,} latents, on the passages that "
        "explanations were written from; chance is 0.50"
    )
    meaning = {
        "good": "Explanations let the judge tell a latent's strongest texts from others; of weaker "
        "ones, and of texts that the explanation was not written from, this says nothing.",
        "caution": "Many explanations say little of what a latent is active on.",
        "bad": "The judge tells a latent's texts from others hardly better than by chance, so that "
        "explanations, and flags that rest on them, should not be believed.",
    }
    if held_out:
        number += (
            f". On passages that they were not written from, of those that passed: "
            f"{median(held_out):.2f} of {len(held_out):,} at ranks 11 to 20"
        )
        if quantiles:
            number += f", {median(quantiles):.2f} of {len(quantiles):,} on weaker ones"
        weakest = min(median(some) for some in (held_out, quantiles) if some)
        levels = (level, graded(weakest, 0.7, 0.6))
        level = min(levels, key=LEVELS.index)
        meaning["good"] = (
            "Explanations let the judge tell a latent's texts from others, those too that they "
            "were not written from."
        )
        if level != "good" and middle >= 0.7:
            return Statement(
                "Explanations",
                level,
                number,
                "Explanations tell a latent's strongest texts, but many do not hold where it is "
                "weaker: they are too narrow, or of something else.",
            )
    return Statement("Explanations", level, number, meaning[level])


NO_ERROR_RATE = Statement(
    "Error rate",
    "caution",
    "not known",
    "No pair without a difference was compared, so that nobody knows which share of the list is "
    "false.",
)


NO_POWER = Statement(
    "What would have been found",
    "caution",
    "not known",
    "No known difference was planted, so that nobody knows what the list would have missed.",
)


def power(planted: PlantedRecall) -> Statement:
    """How much of what is known to be there the list has."""
    recall, without = planted.recall(), len(planted.nothing.plants)
    low, high = recall.interval
    number = (
        f"{recall.found:,} of {recall.of:,} planted differences ({low:.0%} to {high:.0%}); with "
        f"nothing planted {planted.found_without:,} of {without:,}"
    )
    level = graded(low, 0.5, 0.2)
    meaning = {
        "good": "Most differences of the planted kinds, sizes and shares are listed; what is "
        "smaller, rarer or of another kind may be missing.",
        "caution": "A good part of the differences of the planted kinds, sizes and shares is "
        "missing from the list.",
        "bad": "Most differences of the planted kinds, sizes and shares are missing from the list: "
        "what it does not have may well be there.",
    }[level]
    if planted.found_without:
        level = "bad"
        meaning = "Directions that were not planted are found as well: the count says little."
    return Statement("What would have been found", level, number, meaning)


def null_rate(rate: NullRate) -> Statement:
    """What is found where nothing is to be found, and what may be behind the count."""
    about = f"Null: {rate.what}"
    if not rate.of:
        return Statement(about, "caution", "0 of 0", "Nothing could have been found; no evidence.")
    _, high = rate_interval(rate.count, rate.of)
    level = graded(high, 0.05, 0.2)
    number = f"{rate.count:,} of {rate.of:,} ({rate.count / rate.of:.1%}, at most {high:.1%})"
    meaning = {
        "good": "Where nothing differs, next to nothing is found.",
        "caution": "Some of what is found would be found without any difference as well.",
        "bad": "Much is found, or too little was looked at, where nothing differs: a find of this "
        "kind is no evidence by itself.",
    }[level]
    return Statement(about, level, number, meaning)


_ASKED = {
    "shared": "Both fire, have explanations that tell their texts apart, and a clear effect.",
    "random": "The latents have explanations that tell their texts apart; a random direction has "
    "no texts. Of both the effect is clear.",
    "unlike": "They are not chosen alike: all have a clear effect, but of some it is not known "
    "whether explanations tell their texts apart.",
}


def against_null(
    model: str,
    kind: Literal["shared", "random"],
    scores: Sequence[float],
    nulls: Sequence[float],
    alike: bool,
) -> Statement | None:
    """Whether exclusive latents score higher than what is not exclusive; None without scores.

    Of either, those are scored that fire and whose effect on their own model is clear to the judge.
    `alike`: explanations of all these latents tell their texts apart (3.2.2); a random direction
    has no texts.
    """
    what = {"shared": "shared latents", "random": "random directions"}[kind]
    about = f"Exclusivity of {model}'s latents against {what}"
    if not scores:
        return None
    if not nulls:
        return Statement(
            about,
            "caution",
            f"{len(scores):,} latents, no {what}",
            f"No {what} were scored, so that nobody knows which score is high.",
        )
    difference, asked = mean(scores) - mean(nulls), _ASKED[kind if alike else "unlike"]
    number = (
        f"mean {mean(scores):.2f} of {len(scores):,} against {mean(nulls):.2f} of {len(nulls):,}; "
        f"higher in {superiority(scores, nulls):.0%} of pairs"
    )
    if min(len(nulls), len(scores)) < ENOUGH_NULLS:
        return Statement(about, "caution", number, "Too few to tell them apart from chance.")
    low, high = difference_interval(scores, nulls)
    p = group_p(scores, nulls)
    number += f"; difference {difference:+.2f} ({low:+.2f} to {high:+.2f}), p = {p:.2g}"
    if p <= BEYOND_CHANCE / 2:
        meaning = f"They score higher than {what}, beyond chance; as a group, not each of them. "
        return Statement(about, "good" if alike else "caution", number, meaning + asked)
    meaning = f"The score does not tell them from {what}: a high one is no evidence here. {asked}"
    return Statement(about, "caution" if difference > 0 else "bad", number, meaning)


def likeness_against_null(
    model: str, kind: Literal["shared", "random"], values: Sequence[float], nulls: Sequence[float]
) -> Statement | None:
    """Whether effects of exclusive latents are less alike in both models than those of what is
    not exclusive; None without any."""
    what = {"shared": "shared latents", "random": "random directions"}[kind]
    about = f"Likeness of effects: {model}'s latents against {what}"
    if not values:
        return None
    if not nulls:
        meaning = f"No {what} were compared, so that nobody knows which likeness is low."
        return Statement(about, "caution", f"{len(values):,} latents, no {what}", meaning)
    difference = mean(values) - mean(nulls)
    number = (
        f"mean {mean(values):.2f} of {len(values):,} against {mean(nulls):.2f} of {len(nulls):,}; "
        f"less alike in {superiority(nulls, values):.0%} of pairs"
    )
    if min(len(nulls), len(values)) < ENOUGH_NULLS:
        return Statement(about, "caution", number, "Too few to tell them apart from chance.")
    low, high = difference_interval(values, nulls)
    p = group_p(nulls, values)
    number += f"; difference {difference:+.2f} ({low:+.2f} to {high:+.2f}), p = {p:.2g}"
    if p <= BEYOND_CHANCE / 2:
        meaning = (
            f"What they do is carried over less than what {what} do, beyond chance; as a group, "
            "not each of them."
        )
        return Statement(about, "good", number, meaning)
    meaning = f"Likeness does not tell them from {what}: a low one is no evidence here."
    return Statement(about, "caution" if difference < 0 else "bad", number, meaning)


def spread(
    scores: Sequence[float], spreads: Sequence[float], prompts: int | None
) -> Statement | None:
    """Whether latents differ by more than prompts do; None with too few scores."""
    share = reliability(scores, spreads, prompts or 1)
    if share is None:
        return None
    within, between = float(np.sqrt(np.mean(np.square(spreads)))), float(np.std(scores, ddof=1))
    level = graded(share, 0.8, 0.5)
    meaning = {
        "good": "Differences between latents are mostly the latents' own.",
        "caution": "A good part of the differences between latents is the choice of prompts.",
        "bad": "Latents differ hardly more than prompts do: do not rank single latents by it.",
    }[level]
    number = (
        f"{within:.2f} between prompts, {between:.2f} between latents; {share:.0%} of the variance "
        f"is not the prompts'" + ("" if prompts else " (one prompt assumed)")
    )
    return Statement("Exclusivity across prompts", level, number, meaning)


def blinding(scores: Sequence[float], blinded: Sequence[float]) -> Statement | None:
    """Whether scores hold where the judge is not told whose answers it reads; None without any."""
    about = "Judge blinded"
    if not scores:
        return Statement(
            about,
            "caution",
            "not done",
            "The judge knew which answers are the original's, which may sway it.",
        )
    shift = mean(scores) - mean(blinded)
    near = sum(abs(a - b) <= 1 for a, b in zip(scores, blinded, strict=True)) / len(scores)
    correlation = rank_correlation(scores, blinded)
    level = "caution" if len(scores) < ENOUGH_NULLS else graded(near, 0.9, 0.7)
    if abs(shift) > 0.5 and level == "good":
        level = "caution"
    ranks = "" if correlation is None else f", rank correlation {correlation:.2f}"
    number = f"{near:.0%} of {len(scores):,} within one point{ranks}, mean shift {shift:+.2f}"
    meaning = {
        "good": "Scores hold where the judge does not know whose answers it reads.",
        "caution": "Scores move, or are too few to say, where the judge does not know whose "
        "answers it reads: take the blinded one.",
        "bad": "Scores depend on what the judge is told rather than on the answers.",
    }[level]
    return Statement(about, level, number, meaning)


def stitching(model: str, partner: str, direction: Mapping[str, Any]) -> Statement:
    """How much of the partner the map from a model explains: what it misses looks exclusive."""
    closed = direction.get("r2_closed_form")
    usual = direction.get("r2_without_top5")
    r2 = direction["r2"] if usual is None else usual
    level = graded(r2, 0.8, 0.5)
    number = f"held-out R2 {direction['r2']:.2f}"
    if usual is not None:
        number += f", {usual:.2f} without the five largest dimensions"
    if closed is not None:
        number += f"; closed form {closed:.2f}"
    meaning = {
        "good": "The map carries over most of what the models share.",
        "caution": "What the map misses cannot be carried over, shared or not, so that exclusivity "
        "scores of this model are too high by an unknown amount.",
        "bad": "The map misses most: a failed transfer says little, and exclusivity scores of this "
        "model are inflated.",
    }[level]
    return Statement(f"Stitching {model} to {partner}", level, number, meaning)


def shared_basis(first: str, second: str, r2: float) -> Statement:
    """How much of each other two models have as they are, where the map between them is none."""
    level = graded(r2, 0.8, 0.5)
    meaning = {
        "good": "A direction of one model stands for the same in the other, and is tried there as "
        "it is.",
        "caution": "The models have drifted apart: a direction of one may stand for something else "
        "in the other, so that exclusivity scores are too high by an unknown amount.",
        "bad": "Hardly anything is the same in both as it is: exclusivity scores mean little.",
    }[level]
    number = f"shared basis: the map is the identity, R2 {r2:.2f}"
    return Statement(f"Stitching {first} and {second}", level, number, meaning)


def told(model: str, untold: float) -> Statement:
    """How much of a model's activations a linear map from the other's tells."""
    level = graded(untold, 0.5, LITTLE)
    meaning = {
        "good": "The models have enough in common for the rest to be a difference.",
        "caution": "Much of what is listed may be what a linear map misses, and no difference.",
        "bad": "The pairs are not of the same text, or the models have nothing in common: what is "
        "listed is no finding.",
    }[level]
    number = f"{max(1 - untold, 0):.0%} of its variance"
    return Statement(f"What the other model tells of {model}", level, number, meaning)


def pairs(number: int, num_latents: int) -> Statement:
    """How much text the crosscoder learned from: for a latent, and for what is rare."""
    each, rarest = number / max(num_latents, 1), number / FIRINGS
    levels = (
        graded(each, PAPERS_PAIRS_PER_LATENT / 2, PAPERS_PAIRS_PER_LATENT / 10),
        graded(rarest, 50_000, 2_500),
    )
    level = min(levels, key=LEVELS.index)
    meaning = {
        "good": "About as much per latent as in the paper, and enough for what is rare.",
        "caution": "Less than in the paper: rare differences may be missing.",
        "bad": "Far less than in the paper: rare differences are missing, and latents may be only "
        "half learned.",
    }[level]
    return Statement(
        "Pairs trained on",
        level,
        f"{number:,}, {each:,.0f} per latent (the paper: {PAPERS_PAIRS_PER_LATENT:,.0f}); what is "
        f"on one in {rarest:,.0f} was seen {FIRINGS} times",
        meaning,
    )


def reconstruction(model: str, fve: float | None, without_top5: float | None) -> Statement | None:
    """How much of a model the crosscoder sees at all."""
    value = fve if without_top5 is None else without_top5
    if value is None:
        return None
    level = graded(value, 0.75, 0.5)
    parts = [] if fve is None else [f"{fve:.2f} of the variance"]
    parts += [] if without_top5 is None else [f"{without_top5:.2f} without its top 5 dimensions"]
    meaning = {
        "good": "The crosscoder sees most of what this layer holds.",
        "caution": "A part of this layer is not seen; differences in it cannot be found.",
        "bad": "Most of this layer is not seen: latents that rebuild so little stand for little, "
        "and that nothing was found says little.",
    }[level]
    return Statement(f"Reconstruction of {model}", level, ", ".join(parts), meaning)


def grafted(model: str, found: Mapping[str, Any]) -> Statement:
    """How much of what the model uses at this layer the reconstruction has."""
    recovered = found["recovered"]["mean"]
    level = graded(recovered["value"], 0.9, 0.7)
    meaning = {
        "good": "The reconstruction has most of what the model uses here for its next tokens.",
        "caution": "A part of what the model uses here is not in the reconstruction: a difference "
        "in it cannot be found.",
        "bad": "Much of what the model uses here is not in the reconstruction: that nothing was "
        "found says little.",
    }[level]
    number = (
        f"in place of the activation at {found['replaced'] / max(found['tokens'], 1):.0%} of the "
        f"tokens it loses {found['effects']['reconstruction']['loss']['value']:+.2f} nats a token, "
        f"and recovers {recovered['value']:.0%} ({recovered['low']:.0%} to "
        f"{recovered['high']:.0%}) of what the mean loses"
    )
    return Statement(f"Next tokens by {model}'s reconstruction", level, number, meaning)


def dead(model: str, fraction: float | None) -> Statement | None:
    """How many exclusive latents never fire; None if there are none."""
    if fraction is None:
        return None
    level = graded(fraction, 0.2, 0.5)
    meaning = {
        "good": "Most of the room for this model's own features is used.",
        "caution": "A good part of the room for this model's own features is unused.",
        "bad": "Most of the room for this model's own features is unused; fewer differences could "
        "be found than the size suggests.",
    }[level]
    return Statement(f"Dead exclusive latents of {model}", level, f"{fraction:.0%}", meaning)


def not_scorable(model: str, verdicts: Mapping[str, int]) -> Statement | None:
    """How many of the latents called exclusive the filter can say nothing of."""
    total = sum(verdicts.values())
    if not total:
        return None
    left = sum(verdicts.get(kind, 0) for kind in ("too_rare", "unclear", "not_linear"))
    level = graded(left / total, 0.25, 0.6)
    meaning = {
        "good": "The filter has a verdict on most latents that are called exclusive.",
        "caution": "Of some latents the filter cannot say whether they are exclusive.",
        "bad": "Of most latents the filter cannot say whether they are exclusive; more pairs help.",
    }[level]
    number = f"{left:,} of {total:,} not scorable ({left / total:.0%})"
    return Statement(f"Filter on {model}", level, number, meaning)


def sample_sizes(scored: int, nulls: Mapping[str, int]) -> Statement:
    """How many latents and nulls the exclusivity scores are of."""
    fewest = min(nulls.values(), default=0)
    level = "bad" if not scored else graded(min(scored, fewest), ENOUGH_SCORED, ENOUGH_NULLS)
    meaning = {
        "good": "Enough to compare groups; single latents still need a look of one's own.",
        "caution": "Few: groups can be compared only roughly.",
        "bad": "Too few to compare groups: read the answers instead of the scores.",
    }[level]
    parts = [f"{scored:,} latents", *(f"{n:,} {what}" for what, n in nulls.items())]
    return Statement("Exclusivity scores", level, ", ".join(parts), meaning)


def _chance_matches(found: Mapping[str, Any]) -> float | None:
    """How often clusters match that are different things: those of one run, and of null runs."""
    if "own_run" not in found:  # an earlier version did not count them
        return None
    counted = [found["own_run"], *found["nulls"].values(), found["between_nulls"]]
    return max((one["matched"] / one["of"] for one in counted if one and one["of"]), default=None)


def stability(found: Mapping[str, Any] | None) -> Statement:
    """Whether other runs find the same differences."""
    about = "Stability"
    if found is None or not found.get("runs"):
        return Statement(
            about,
            "caution",
            "not known",
            "One run was looked at: a difference may be an accident of its training. Compare with "
            "other seeds by `sparsify-crosscoder stability`.",
        )
    times = Counter(len(one["members"]) for one in found["differences"])
    total, again = times.total(), sum(n for runs, n in times.items() if runs > 1)
    number = f"{again:,} of {total:,} differences in two of {len(found['runs'])} runs or more"
    level: Level = "caution" if not total else graded(again / total, 0.5, 0.2)
    chance, low = _chance_matches(found), found.get("next_run", {}).get("low", 1.0)
    if chance is not None:
        number += f"; of clusters that are different things up to {chance:.0%} match"
        if total and low <= chance:
            return Statement(
                about, "bad", number, "Differences come back no more often than different things."
            )
    meaning = {
        "good": "Most differences come back in other runs; quote those that do.",
        "caution": "Many differences are found by one run only; quote those that come back.",
        "bad": "Few differences come back: most are accidents of one training.",
    }[level]
    return Statement(about, level, number, meaning)
