"""Does what a latent does to its model transfer to the partner? (B.5, equation 19)"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsify_crosscoder.hashing import hash_json
from sparsify_crosscoder.interventions.generation import PROMPTS, STRENGTHS

from .exclusivity_prompt import (
    INTERPRETABILITY,
    SIMILARITY,
    interpretability_material,
    interpretability_task,
    similarity_material,
    similarity_task,
)
from .exclusivity_results import (
    Exclusivity,
    Kind,
    PromptJudgement,
    Verdict,
    done,
    load,
    mean_score,
    null_summary,
    numbers,
    rank,
    save,
)
from .question import Message
from .rating import Rating, RatingQuestion, rate

# isort: split
from delphi.clients.client import Client

__all__ = [
    "KEEP",
    "LONGEST",
    "PROMPTS",
    "STRENGTHS",
    "Exclusivity",
    "ExclusivityJudge",
    "Kind",
    "PromptJudgement",
    "SteeredAnswers",
    "Verdict",
    "done",
    "load",
    "null_summary",
    "partner_first",
    "rank",
    "requests",
    "save",
]

KEEP = 3.0
"""Steering interpretability from which on a latent is scored (B.5)."""

LONGEST = 2_000
"""Characters of an answer that the judge is shown; B.5 generates 200 tokens."""


@dataclass(frozen=True)
class SteeredAnswers:
    """What both models wrote to P prompts at K strengths.

    Raises ValueError unless there are a prompt and a strength, no two are the same, and each model
    has K texts for each of the P prompts.
    """

    prompts: list[str]
    strengths: list[float]
    original: list[list[str]]
    """Of the latent's own model, steered with its own vector, `[P][K]`."""

    partner: list[list[str]]
    """Of the other model, steered with the stitched vector, `[P][K]`."""

    def __post_init__(self) -> None:
        for what in ("prompts", "strengths"):
            values = getattr(self, what)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{what} must be at least one and different, got {values}.")
        if not all(math.isfinite(strength) for strength in self.strengths):
            raise ValueError(f"strengths must be finite, got {self.strengths}.")
        P, K = len(self.prompts), len(self.strengths)
        for what in ("original", "partner"):
            texts = getattr(self, what)
            if len(texts) != P or any(len(row) != K for row in texts):
                raise ValueError(
                    f"{what} must have {K} texts, one for each strength, for each of the {P} "
                    f"prompts; it has {[len(row) for row in texts]}."
                )
            if not all(isinstance(text, str) for row in texts for text in row):
                raise ValueError(f"{what} must have texts only.")


@dataclass
class ExclusivityJudge:
    """Asks a judge about steered answers, of a latent or of a null alike.

    - blinded: ask for each similarity once more, blinded.
    - keep: mean interpretability from which on similarities are asked for.
    - longest: characters of an answer that the judge is shown.
    - generation_kwargs: passed to the client.

    The judge learns neither the name nor the kind nor the source. Whatever the client does there is
    a result; only an exception that is no `Exception`, such as an exceeded budget, gets out.
    """

    client: Client
    blinded: bool = field(default=True, kw_only=True)
    keep: float = field(default=KEEP, kw_only=True)
    temperature: float = field(default=0.0, kw_only=True)
    longest: int = field(default=LONGEST, kw_only=True)
    generation_kwargs: dict[str, Any] = field(default_factory=dict, kw_only=True)

    async def __call__(
        self, name: str, kind: Kind, source: int, answers: SteeredAnswers
    ) -> Exclusivity:
        """Judge one direction by what both models wrote."""
        places = range(len(answers.prompts))
        clear = await self._rate([_interpretability(answers, p, self.longest) for p in places])
        mean = mean_score(clear, INTERPRETABILITY)
        similar: list[Rating | None] = [None for _ in places]
        blinded: list[Rating | None] = [None for _ in places]
        if mean is not None and mean >= self.keep:
            asked = [_similarity(answers, p, self.longest) for p in places]
            if self.blinded:
                asked += [_blinded(name, answers, p, self.longest) for p in places]
            ratings = await self._rate(asked)
            similar = list(ratings[: len(places)])
            blinded = list(ratings[len(places) :]) or blinded
        prompts = [
            PromptJudgement(*one)
            for one in zip(answers.prompts, clear, similar, blinded, strict=True)
        ]
        means = numbers(prompts)
        status: Verdict = "unanswered" if means["score"] is None else "scored"
        if mean is not None and mean < self.keep:
            status = "not_interpretable"
        return Exclusivity(name, kind, source, status, **means, prompts=prompts)

    async def _rate(self, asked: Sequence[RatingQuestion]) -> list[Rating]:
        ratings: list[Awaitable[Rating]] = [
            rate(self.client, one, temperature=self.temperature, **self.generation_kwargs)
            for one in asked
        ]
        return await asyncio.gather(*ratings)


def requests(
    answers: SteeredAnswers, name: str = "", *, blinded: bool = True, longest: int = LONGEST
) -> list[list[Message]]:
    """The conversations that a judge would begin if steering is interpretable: all that may be
    asked, but for reminders."""
    asked: list[RatingQuestion] = []
    for place in range(len(answers.prompts)):
        asked += [_interpretability(answers, place, longest), _similarity(answers, place, longest)]
        asked += [_blinded(name, answers, place, longest)] if blinded else []
    return [one.messages() for one in asked]


def partner_first(name: str, prompt: str) -> bool:
    """Whether the blinded judge sees the partner's answers first: even odds, always the same."""
    return int(hash_json([name, prompt])[:2], 16) % 2 == 1


def _interpretability(answers: SteeredAnswers, place: int, longest: int) -> RatingQuestion:
    material = interpretability_material(
        answers.prompts[place], answers.strengths, answers.original[place], longest
    )
    return RatingQuestion(interpretability_task(), material, [INTERPRETABILITY])


def _similarity(answers: SteeredAnswers, place: int, longest: int) -> RatingQuestion:
    pair = answers.original[place], answers.partner[place]
    material = similarity_material(answers.prompts[place], answers.strengths, *pair, longest)
    return RatingQuestion(similarity_task(blinded=False), material, [SIMILARITY])


def _blinded(name: str, answers: SteeredAnswers, place: int, longest: int) -> RatingQuestion:
    prompt, pair = answers.prompts[place], (answers.original[place], answers.partner[place])
    first, second = reversed(pair) if partner_first(name, prompt) else pair
    material = similarity_material(prompt, answers.strengths, first, second, longest)
    return RatingQuestion(similarity_task(blinded=True), material, [SIMILARITY])
