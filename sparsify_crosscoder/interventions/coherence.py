"""Up to which strength a steered model still writes text, as its own unsteered self finds it.

Without a judge: the bound is on the likelihood that the unsteered model gives to steered answers,
and on how much they repeat themselves, since it finds a loop likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .effects import repetition, surprise
from .generation import Answering, Sampling, as_prompts, generate, parts_of
from .prompts import Prompt
from .steering import Steering

STEPS = 5  # of the bisection: a thirty-second of the largest strength


@dataclass(frozen=True)
class CoherenceTest:
    """What counts as text."""

    most: float = 10.0
    """The largest strength that is tried (B.5)."""

    nats: float = 1.0
    """How much less likely than its own answers the unsteered model may find a steered one, nats a
    token, on average."""

    repetition: float = 0.5
    """How much larger than in unsteered answers the share of runs of three tokens that came before
    may be."""

    def __post_init__(self):
        if self.most <= 0 or self.nats <= 0 or not 0 <= self.repetition <= 1:
            raise ValueError(
                "The largest strength and the nats of a coherence test are positive, and its "
                f"share of repetitions is between 0 and 1: {self}."
            )


@dataclass(frozen=True)
class Coherence:
    """The strength up to which answers are text."""

    strength: float
    tried: list[tuple[float, float, float]]
    """Strength, and of the answers the means of `surprise` and `repetition` of `effects`; the first
    is unsteered."""

    def doses(self, count: int) -> list[float]:
        """That many strengths from 0 to it, in equal steps."""
        return [self.strength * step / max(count - 1, 1) for step in range(count)]

    def text(self) -> str:
        """In a sentence."""
        return (
            f"coherent up to strength {self.strength:.3g} "
            f"({len(self.tried) - 1} strengths tried without a judge)"
        )


def coherent_strength(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    steering: Steering | Sequence[Steering],
    sampling: Sampling | None = None,
    test: CoherenceTest | None = None,
    *,
    tokenizer: Any = None,
    answering: Answering | None = None,
) -> Coherence:
    """The largest strength at which a model's answers are still text, found by bisection.

    Arguments as of `generate`. Answers without a token are no text. Raises ValueError where the
    unsteered model answers nothing.
    """
    sampling, test = sampling or Sampling(), test or CoherenceTest()
    answering = answering or Answering()
    steering = [steering] if isinstance(steering, Steering) else list(steering)
    language_model, tokenizer = parts_of(model, tokenizer)
    prompts = as_prompts(prompts)

    def measured(strength: float) -> tuple[float, float, float] | None:
        found = generate(
            model, prompts, steering, [strength], sampling, tokenizer=tokenizer, answering=answering
        )
        if not all(row[0].text.strip() for row in found.answers):
            return None
        answers = [row[0].tokens for row in found.answers]
        surprises = [
            float(surprise(language_model, prompt, [answer])[0])
            for prompt, answer in zip(found.prompt_tokens, answers, strict=True)
        ]
        return strength, mean(surprises), mean(map(repetition, answers))

    own = measured(0.0)
    if own is None:
        raise ValueError("The unsteered model answers a prompt with nothing; give other prompts.")
    tried = [own]

    def coherent(strength: float) -> bool:
        found = measured(strength)
        if found is None:
            return False
        tried.append(found)
        return found[1] - own[1] <= test.nats and found[2] - own[2] <= test.repetition

    if coherent(test.most):
        return Coherence(test.most, tried)
    low, high = 0.0, test.most
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if coherent(middle) else (low, middle)
    return Coherence(low, tried)
