"""A rubric of two scales for tests, which ask what they like of it."""

from delphi_adapters.judging.rating import Scale
from delphi_adapters.judging.rubrics import Example, Rubric
from sparsify_crosscoder.interventions.generation import Sampling

LEVELS = ("None.", "Little.", "Some.", "Much.", "All.")


def tides(prompts: tuple[str, ...], strengths: tuple[float, ...]) -> Rubric:
    """How much of the tide there is in answers to some prompts, and how well they can be read."""
    return Rubric(
        name="tides",
        description="People asked about the sea.",
        dimensions=(
            Scale("TIDE", "How much of the tide?", LEVELS),
            Scale("COHERENCE", "How well can it be read?", LEVELS),
        ),
        prompts=prompts,
        strengths=strengths,
        sampling=Sampling(20),
        examples=(Example("Hm?", "Tide.", {"TIDE": 5, "COHERENCE": 3}, "It is the tide."),),
    )
