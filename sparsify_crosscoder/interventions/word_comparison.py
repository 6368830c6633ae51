"""Whether a transferred vector does in the other model what it does in its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..crosscoders import Crosscoder
from ..harvest.model_identity import short_names
from ..runs.models import End, Loading
from .effects import word_effects
from .steering import Steering
from .transfer import Norm, Transferred, random_transfers
from .vectors import SteeringVector

STRENGTHS = (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class WordTest:
    """What the models are asked: words to follow behind prompts, at K strengths."""

    words: list[str]
    prompts: list[str]
    strengths: Sequence[float] = STRENGTHS
    chat: bool | None = None
    """Whether prompts are a user's messages; None: where there is a chat template."""

    controls: int = 20
    """Draws of random latents."""

    norm: Norm = "normalised"


@dataclass(frozen=True)
class WordComparison:
    """Probability of the words, `[K]`, by every vector."""

    test: WordTest
    names: tuple[str, str]
    """Of the vector's own model, and of the other."""

    original: Tensor
    candidates: Mapping[str, Tensor]
    random: Tensor
    """By each draw of random latents, `[draws, K]`."""

    as_strong: Tensor = field(init=False)
    """How many draws do as much as the first candidate, `[K]`."""

    def __post_init__(self):
        first = next(iter(self.candidates.values()))
        object.__setattr__(self, "as_strong", (self.random >= first).sum(0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "words": list(self.test.words),
            "prompts": self.test.prompts,
            "strengths": list(self.test.strengths),
            "original": self.original.tolist(),
            **{name: values.tolist() for name, values in self.candidates.items()},
            "random": self.random.tolist(),
            "random_as_strong": self.as_strong.tolist(),
        }

    def table(self) -> str:
        """One line per vector, a column per strength."""
        own, other = self.names
        rows = {f"{own}, original": self.original}
        for name, values in self.candidates.items():
            rows[f"{other}, {name}"] = values
        rows["random latents, mean"] = self.random.mean(0)
        rows["random latents, largest"] = self.random.max(0).values
        last = f"draws of {len(self.random)} that do as much"
        width = max(map(len, [*rows, last]))
        lines = ["probability of the words, by strength"]
        lines.append(" " * width + "".join(f"{s:>9g}" for s in self.test.strengths))
        for name, values in rows.items():
            lines.append(f"{name:<{width}}" + "".join(f"{v:>9.4f}" for v in values.tolist()))
        lines.append(f"{last:<{width}}" + "".join(f"{n:>9}" for n in self.as_strong.tolist()))
        return "\n".join(lines)


def compare_words(
    crosscoder: Crosscoder,
    vector: SteeringVector,
    found: Transferred,
    candidates: Mapping[str, Tensor],
    test: WordTest,
    ends: tuple[End, End],
    loading: Loading,
) -> WordComparison:
    """Probability of the words in both models, and by random latents in the target.

    `candidates` are vectors of the other model, the transferred one first; `ends` the vector's
    model and the other.
    """
    here, there = ends
    model, tokenizer = loading.load_end(here)
    own = Steering(vector.vector, here.hookpoint, vector.scale)
    asked: dict[str, Any] = {"chat": test.chat}
    place = (test.prompts, [own], test.strengths, test.words)
    original = word_effects(model, *place, tokenizer=tokenizer, **asked)[0]
    del model
    model, tokenizer = loading.load_end(there)
    controls = random_transfers(
        crosscoder, vector.vector * vector.scale, found, test.controls, norm=test.norm
    )
    vectors = [*candidates.values(), *(control.vector for control in controls)]
    steering = [Steering(one, there.hookpoint) for one in vectors]
    place = (test.prompts, steering, test.strengths, test.words)
    moved = word_effects(model, *place, tokenizer=tokenizer, **asked)
    first, second = short_names([here.model, there.model])
    return WordComparison(
        test,
        (first, second),
        original,
        dict(zip(candidates, moved, strict=False)),
        moved[len(candidates) :],
    )
