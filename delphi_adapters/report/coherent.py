"""Of steered answers those that are still text, by what was measured of them without a judge.

P prompts, K strengths.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sparsify_crosscoder.interventions.coherence import CoherenceTest

from .data import SteeredOutputs

NO_TEXT = "(no text any more)"
"""Stands for answers that are left out."""


def coherent_count(
    strengths: Sequence[float],
    measures: Mapping[str, Sequence[Sequence[float]]],
    test: CoherenceTest | None = None,
) -> int:
    """At how many of the first strengths a model's answers are text.

    `measures` has the "surprise" and "repetition" of its answers, `[P][K]`, of which the means
    over prompts are held against those at strength 0, as `coherent_strength` does it. All of them
    where the first strength is not 0.
    """
    test = test or CoherenceTest()
    if not strengths or strengths[0] != 0:
        return len(strengths)
    surprise, repetition = (
        [statistics.fmean(values) for values in zip(*measures[name], strict=True)]
        for name in ("surprise", "repetition")
    )
    for place in range(1, len(strengths)):
        apart = surprise[place] - surprise[0], repetition[place] - repetition[0]
        if apart[0] > test.nats or apart[1] > test.repetition:
            return place
    return len(strengths)


def without_gibberish(outputs: SteeredOutputs, counts: Sequence[int]) -> SteeredOutputs:
    """The answers at the first strengths, as many as `counts` has of each model; those at which no
    model has any are left out altogether, and it is said."""
    kept = max(counts)
    answers = [
        [[*row[:count], *[NO_TEXT] * (kept - count)] for row in of_model]
        for of_model, count in zip(outputs.answers, counts, strict=True)
    ]
    if min(counts) == len(outputs.strengths):
        return outputs
    parts = ", ".join(
        f"of {model} above {outputs.strengths[count - 1]:g}"
        for model, count in zip(outputs.models, counts, strict=True)
        if count < len(outputs.strengths)
    )
    note = (
        f"Answers {parts} are no text any more and left out: the unsteered model finds them over "
        "a nat a token less likely than its own, or half more of their runs of three tokens came "
        "before. The judge has seen them; --gibberish shows them."
    )
    return SteeredOutputs(outputs.prompts, outputs.strengths[:kept], outputs.models, answers, note)
