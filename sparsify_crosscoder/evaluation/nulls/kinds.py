"""Which nulls there are, what each can show, and which go with a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LAYER, ROUNDED, FINE_TUNE = "layer", "rounded", "fine-tune"

NULL_KINDS: dict[str, str] = {
    LAYER: "a model at its layer against itself one layer on: what one block adds",
    ROUNDED: "a model against itself with its weights rounded to 8 bits",
    FINE_TUNE: "a model against a fine-tune on its own answers, as far from it as the run's models "
    "are from each other",
}
"""The kinds by their names. `layer` is for models that share no basis: there the step between two
layers stands for what a linear map leaves of ordinary computing. Of a model and its fine-tune it
would be far too large, and rounding and a fine-tune without an object are what is alike."""


def kinds_for(sources: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The kinds that go with a run's recorded sources: whether these share a basis decides."""
    from ...harvest.families import same_family

    shared = all(same_family(sources[0], other) for other in sources[1:])
    return (ROUNDED, FINE_TUNE) if shared else (LAYER,)
