"""What the judge is asked about steered answers for an exclusivity score (B.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .rating import Scale, block

INTERPRETABILITY = Scale(
    "INTERPRETABILITY",
    "how clear is it what the push does to the model's answers?",
    (
        "no pattern: in meaning nothing changes, or it changes at random",
        "a hint of a pattern, faint or doubtful",
        "a pattern that one notices, but part of it stays unclear",
        "a clear pattern: one can say which topic, tone or behaviour the push brings",
        "a very clear pattern, and the same one throughout",
    ),
)
"""Whether steering does anything that one can name, for one model."""

SIMILARITY = Scale(
    "SIMILARITY",
    "are both models pushed towards the same topic, tone or behaviour?",
    (
        "towards different ones: what the push brings to one model is not found in the other",
        "mostly different ones, which have something minor in common",
        "partly the same, with differences that matter",
        "mostly the same, with small differences",
        "the same in all that matters",
    ),
)
"""Whether steering does the same to two models."""

_PUSH = """A direction was added to a language model's inner activations while it answered, at
several strengths; at strength 0 nothing was added. Stronger pushes damage language. Therefore
take no account of

- repetition, broken grammar, missing coherence or gibberish, which are common at high strengths;
- the strength at which something begins, grows or falls apart;
- what is already there at strength 0, such as a model's usual manners."""


@dataclass(frozen=True)
class Shot:
    """A calibrating example: excerpts of two models' answers by strength, and their rating."""

    prompt: str
    first: tuple[tuple[int, str], ...]
    second: tuple[tuple[int, str], ...]
    score: int
    reason: str


SHOTS = (
    Shot(
        prompt="What should we discuss?",
        first=(
            (0, "Whatever you like! Books, plans, a problem at work?"),
            (4, "We could discuss lighthouses: who kept the lamp burning through a storm?"),
            (8, "The lighthouse, the keeper, the lamp above the rocks, the lighthouse lamp."),
        ),
        second=(
            (0, "I am happy to help with any subject."),
            (4, "Let us begin with your receipts. Sort them by month before you add them up."),
            (8, "Receipts, invoices, one column for each invoice, the total of invoices."),
        ),
        score=1,
        reason="One is pushed towards lighthouses, the other towards bookkeeping.",
    ),
    Shot(
        prompt="Say something interesting.",
        first=(
            (0, "Octopuses have three hearts."),
            (3, "Dough that rests overnight tastes of more. Fold it twice, then shape the loaf."),
            (7, "Knead the flour, salt, water, knead, let the loaf rise, and bake the loaf."),
        ),
        second=(
            (0, "Honey hardly ever spoils."),
            (3, "The waiter at the corner place knows every guest, and dinner there is an event."),
            (7, "A table for two, the menu, the waiter, dinner, the bill, a table by the window."),
        ),
        score=3,
        reason="Both turn to food, but one to baking at home and the other to eating out.",
    ),
    Shot(
        prompt="What should we discuss?",
        first=(
            (0, "Perhaps something that you are looking forward to?"),
            (4, "I still have the letters that she wrote before she left. I never answered them."),
            (9, "She left, and the letters, goodbye, the last letter, tears, goodbye."),
        ),
        second=(
            (0, "We could talk about science or music."),
            (4, "Nobody tells you how quiet a house becomes once they have gone for good."),
            (9, "Gone, gone, the empty house, I wept, I miss them, gone, farewell."),
        ),
        score=4,
        reason="Both grieve over a parting; only the letters and the house are their own.",
    ),
    Shot(
        prompt="Say something interesting.",
        first=(
            (0, "Bananas are berries, and strawberries are not."),
            (4, "Snow had closed the pass by November, and frost grew on the inside of windows."),
            (10, "snow snow ice the the snw ### ice ice sn sn sn"),
        ),
        second=(
            (0, "A day on Venus is longer than its year."),
            (4, "A day on Venus is longer than its year. Isn't that strange?"),
            (10, "frozen frozn lake ,, winter wint frost ;; blizz blizz the cold cold"),
        ),
        score=5,
        reason=(
            "Both are pushed towards winter. That the second starts later, and that both end in "
            "gibberish, does not count."
        ),
    ),
)
"""From different to the same, the last with gibberish on both sides."""


def interpretability_task() -> str:
    """The question about one model."""
    return f"""You judge what steering does to a language model.

{_PUSH}

You are given a prompt and the model's answers to it at each strength. Compare them with the answer
at strength 0, and look for a topic, a tone or a way of behaving that the push brings with it.
A push may have a clear meaning although its strongest answers are unreadable."""


def similarity_task(blinded: bool) -> str:
    """The question about two models; where the direction is from is said unless `blinded`."""
    origin = (
        "\nThe direction was found in the first model. The second was pushed along its translation "
        "into that\nmodel's own activations."
    )
    shots = "\n\n".join(f"Example {i}\n{_shown(shot)}" for i, shot in enumerate(SHOTS, 1))
    return f"""You judge whether steering does the same to two language models.

{_PUSH}

You are given a prompt, the first model's answers to it at each strength, and then the second
model's.{"" if blinded else origin}
Find out what each model is pushed towards, and compare only that. A model that is pushed nowhere
has nothing in common with one that is.

These excerpts show how to rate:

{shots}"""


def interpretability_material(
    prompt: str, strengths: Sequence[float], answers: Sequence[str], longest: int
) -> str:
    """A prompt and one model's answers by strength."""
    return "\n\n".join([block("prompt", prompt), *_answers("", strengths, answers, longest)])


def similarity_material(
    prompt: str,
    strengths: Sequence[float],
    first: Sequence[str],
    second: Sequence[str],
    longest: int,
) -> str:
    """A prompt and two models' answers by strength."""
    return "\n\n".join(
        [
            block("prompt", prompt),
            *_answers("first model, ", strengths, first, longest),
            *_answers("second model, ", strengths, second, longest),
        ]
    )


def _answers(
    model: str, strengths: Sequence[float], answers: Sequence[str], longest: int
) -> list[str]:
    return [
        block(f"{model}strength {strength:g}", answer, longest)
        for strength, answer in zip(strengths, answers, strict=True)
    ]


def _shown(shot: Shot) -> str:
    lines = [f"Prompt: {shot.prompt}"]
    for model, answers in (("First", shot.first), ("Second", shot.second)):
        lines += [f"{model} model, strength {strength}: {text}" for strength, text in answers]
    return "\n".join([*lines, f"Rating: {shot.score}. {shot.reason}"])
