"""Whether a direction causes a behaviour, by the likelihood of answers that show it.

Nothing is sampled or judged: held-out answers are read under an intervention, and what it changes
is compared with what it changes in answers that do not show the behaviour, and with what random
directions of equal length do. N answers, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ..harvest.hookpoints import normalize_hookpoint
from ..permutation import BEYOND_CHANCE, rank_p
from .answer_likelihood import Answered, GivenAnswers
from .random_directions import Null, random_directions
from .steering import Steering

Span = Literal["hookpoint", "onwards"]

LEAST_TEXTS = 4
"""Of each kind, so that an interval can be had of half of them."""

LEAST_EFFECT = 0.01
"""Nats a token; less may be rounding, which has an order as well."""


class Behaviour(NamedTuple):
    """Held-out answers by which a cause is judged."""

    shown: Sequence[Answered]
    """Answers that show the behaviour."""

    elsewhere: Sequence[Answered]
    """Answers that do not, best by the same writer: what an intervention does to these as well is
    no sign of the behaviour."""


@dataclass(frozen=True)
class CauseSettings:
    """What is tried, for a direction and for the random ones alike."""

    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Multiples of the vector to add at each layer; ablating always removes all of it."""

    spans: tuple[Span, ...] = ("hookpoint", "onwards")
    """Layers to act at: the hookpoint's alone, or it and all behind it."""

    random: int = 20
    null: Null = "activations"
    """What random directions are drawn with: the covariance of the activations, or none."""

    seed: int = 0
    chat: bool | None = None
    """Whether a prompt that is a text is a user's message; None: if there is a template."""


@dataclass(frozen=True)
class Cause:
    """What an intervention with a direction does to a behaviour, on texts not used to choose it."""

    kind: Literal["adds", "ablates"]
    """Whether the direction was added, to induce the behaviour, or removed, to end it."""

    effect: float
    """By how much the answers that show the behaviour became likelier (adds) or less likely
    (ablates), less what the others did likewise, nats a token."""

    interval: tuple[float, float]
    """95% of the effect, each answer counted as one."""

    shown: float
    """Change of mean log-likelihood of the answers that show the behaviour, nats a token."""

    elsewhere: float
    """The same of the others."""

    random: tuple[float, ...]
    """Effects of random directions of equal length, each with the best strength and span for it."""

    strength: float
    span: Span

    @property
    def p(self) -> float:
        """Of the effect among those of random directions."""
        return rank_p(self.effect, self.random)

    @property
    def verified(self) -> bool:
        """Whether it is beyond chance among random directions, of which that takes 19, above
        `LEAST_EFFECT`, and its interval above 0."""
        large = self.interval[0] > 0 and self.effect > LEAST_EFFECT
        return large and self.p <= BEYOND_CHANCE

    def sentence(self) -> str:
        """What was found, in plain words."""
        beyond = sum(self.effect > r for r in self.random)
        verb, direction = ("adding", "raises") if self.kind == "adds" else ("ablating", "lowers")
        return (
            f"{'verified' if self.verified else 'not verified'}: {verb} it {direction} the "
            f"log-likelihood of held-out answers that show the behaviour by {self.effect:.2f} nats "
            f"a token more than that of others (95%: {self.interval[0]:.2f} to "
            f"{self.interval[1]:.2f}); {beyond} of {len(self.random)} random directions of equal "
            f"length do less (p = {self.p:.2g})."
        )


def cause(
    model: Any,
    tokenizer: Any,
    steering: Steering,
    behaviour: Behaviour,
    settings: CauseSettings | None = None,
    *,
    reference: Any = None,
) -> Cause:
    """Whether a direction causes a behaviour in a model.

    `steering` adds to a model without the behaviour, or ablates in one with it. What is ablated is
    then the direction's part in the difference to `reference`, a model without the behaviour that
    shares tokenizer and basis: at every token it gets the component that it has there. Without one
    it gets the mean component of this model's answers elsewhere. Strength and span are chosen on
    one half of the answers, for every random direction as well, and the effect is of the other.

    Raises ValueError for too few answers, for steering that clamps, and for what models cannot
    read.
    """
    settings = settings or CauseSettings()
    if steering.mode == "clamp":
        raise ValueError("A cause is found by adding or ablating a direction, not by clamping it.")
    adds = steering.mode == "add"
    trials: list[tuple[Span, float]] = [
        (span, strength)
        for span in settings.spans
        for strength in (settings.strengths if adds else (1.0,))
    ]
    layers = {span: _layers(model, steering.hookpoint, span) for span in settings.spans}
    places = list(dict.fromkeys(place for span in layers.values() for place in span))
    halves = [
        _Half.read(
            model,
            tokenizer,
            Behaviour(behaviour.shown[start::2], behaviour.elsewhere[start::2]),
            places,
            settings.chat,
        )
        for start in (0, 1)
    ]
    choosing, testing = halves
    like = None
    if settings.null == "activations":
        kept = choosing.given.residuals([steering.hookpoint])
        like = choosing.given.tokens(kept[steering.hookpoint])
    if not adds:
        choosing, testing = (half.with_centers(reference) for half in halves)
    drawn = random_directions(steering.vector, settings.random, like=like, seed=settings.seed)

    def best(vector: Tensor) -> tuple[tuple[Span, float], _Change]:
        one = replace(steering, vector=vector)
        trial = trials[0]
        if len(trials) > 1:
            changes = [choosing.change(one, layers[span], strength) for span, strength in trials]
            trial = trials[max(range(len(trials)), key=lambda i: changes[i].effect)]
        return trial, testing.change(one, layers[trial[0]], trial[1])

    (span, strength), found = best(steering.vector)
    randoms = tuple(best(vector)[1].effect for vector in drawn)
    return Cause(
        "adds" if adds else "ablates",
        found.effect,
        found.interval(),
        float(found.shown.mean()),
        float(found.elsewhere.mean()),
        randoms,
        strength,
        span,
    )


class _Change(NamedTuple):
    """Change of each answer's mean log-likelihood."""

    shown: Tensor
    elsewhere: Tensor
    sign: int

    @property
    def _credited(self) -> bool:
        """Whether the others change likewise; where they change the other way, as by damage to a
        model in which something is to be induced, that is no merit."""
        return self.sign * float(self.elsewhere.mean()) > 0

    @property
    def effect(self) -> float:
        found = self.shown.mean() - (self.elsewhere.mean() if self._credited else 0.0)
        return self.sign * float(found)

    def interval(self) -> tuple[float, float]:
        from scipy.stats import t

        parts = [self.shown, *([self.elsewhere] if self._credited else [])]
        error = math.sqrt(sum(float(x.double().var()) / len(x) for x in parts))
        wide = float(t.ppf(0.975, min(map(len, parts)) - 1)) * error
        return self.effect - wide, self.effect + wide


class _Half(NamedTuple):
    """Half of the answers, read by the model."""

    given: GivenAnswers
    num_shown: int
    centers: dict[str, list[Tensor]] | None = None

    @classmethod
    def read(
        cls,
        model: Any,
        tokenizer: Any,
        half: Behaviour,
        places: Sequence[str],
        chat: bool | None,
    ) -> _Half:
        if min(map(len, half)) < LEAST_TEXTS // 2:
            raise ValueError(
                f"A cause needs at least {LEAST_TEXTS} answers that show the behaviour and as many "
                f"that do not."
            )
        answered = [*half.shown, *half.elsewhere]
        return cls(GivenAnswers(model, tokenizer, answered, places, chat=chat), len(half.shown))

    def with_centers(self, reference: Any) -> _Half:
        """The same half, with what takes the place of a direction that is ablated."""
        kept = self.given.residuals(self.given.hookpoints, reference)
        if reference is not None:
            return self._replace(centers=kept)
        elsewhere = range(self.num_shown, len(self.given.unsteered))
        means = {place: self.given.tokens(x, elsewhere).mean(0) for place, x in kept.items()}
        count = len(self.given.batches)
        return self._replace(centers={place: [mean] * count for place, mean in means.items()})

    def change(self, steering: Steering, places: Sequence[str], strength: float) -> _Change:
        acting = [replace(steering, hookpoint=place) for place in places]
        found = self.given.likelihoods(acting, strength, self.centers) - self.given.unsteered
        sign = 1 if steering.mode == "add" else -1
        return _Change(found[: self.num_shown], found[self.num_shown :], sign)


def _layers(model: Any, hookpoint: str, span: Span) -> list[str]:
    """The hookpoints of a span: the same module of a list's layers."""
    place = normalize_hookpoint(model, hookpoint)
    if span == "hookpoint":
        return [place]
    parts = place.split(".")
    for depth in range(1, len(parts)):
        layers = model.base_model.get_submodule(".".join(parts[:depth]))
        if isinstance(layers, nn.ModuleList):
            return [
                ".".join([*parts[:depth], str(i), *parts[depth + 1 :]])
                for i in range(int(parts[depth]), len(layers))
            ]
    raise ValueError(f"'{hookpoint}' is in no list of layers, so there is nothing behind it.")
