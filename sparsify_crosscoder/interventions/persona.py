"""Persona vectors: where a model is when it shows a trait, less where it is when it does not.

Chen et al. 2025b, used in section 3.1. A model answers questions under system prompts that elicit
a trait and under ones that suppress it; the mean activations over the answers differ by the
vector. No judge takes part: the layer is chosen by what steering with its vector does to answers
that the vector was not made from.

L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..harvest.hookpoints import first_tensor, layer_list, normalize_hookpoint
from ..harvest.limits import check_texts
from ..records import check, read_json, reading
from .effects import surprise
from .generation import Answering, Sampling, generate, parts_of
from .prompts import encode_prompt
from .steering import Steering, steered
from .vectors import SteeringVector

_MEND = "Write it anew; examples/pirate.json is one."


@dataclass(frozen=True)
class Persona:
    """A trait, and what brings it out and what keeps it in."""

    trait: str
    elicit: list[str]
    """System prompts under which the model shows the trait; without questions, texts that have
    it."""

    suppress: list[str]
    """System prompts under which it does not; without questions, texts that do not have it."""

    questions: list[str] = field(default_factory=list)
    """What the model is asked under each system prompt; none to read the texts as they are."""

    def __post_init__(self):
        for name in ("elicit", "suppress", "questions"):
            value = getattr(self, name)
            if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
                raise ValueError(f"{name} of a persona must be a list of texts, got {value!r:.80}.")
        if not self.elicit or not self.suppress:
            raise ValueError("A persona needs one text to elicit it and one to suppress it.")

    @classmethod
    def from_json(cls, path: str | Path) -> Persona:
        """Read a file `{"trait", "elicit", "suppress", "questions"}`; raises ValueError."""
        try:
            content = read_json(path, Any, _MEND)
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read the persona '{path}': {error}") from error
        known = {"trait", "elicit", "suppress", "questions"}
        if not isinstance(content, dict) or not known - {"questions"} <= set(content) <= known:
            raise ValueError(
                f"'{path}' must hold an object with trait, elicit, suppress and, unless these are "
                "texts, questions."
            )
        with reading(path, _MEND):
            check(content["trait"], str, "trait")
            return cls(**content)


class Example(NamedTuple):
    """An answer that has the trait or has not."""

    asked: list[int]
    """What the model read when it answered."""

    bare: list[int]
    """The same question without the system prompt."""

    answer: list[int]
    text: str
    question: int
    """Number of the question, or of the text where there are none."""


@dataclass(frozen=True, eq=False)
class PersonaVectors:
    """A vector for every layer, and which layer to steer."""

    persona: Persona
    model: str
    hookpoints: list[str]
    vectors: Tensor
    """Mean activation over answers with the trait less that over answers without, `[L, D]`."""

    effects: list[dict[str, float]]
    """What adding each layer's vector once does: the change, in nats per token, of the
    likelihood of answers with the trait (`elicit`), of those without (`suppress`), and the
    difference (`contrast`), on other questions than those of the vector."""

    split: bool
    """Whether the effects are of other questions; a single one serves for both."""

    answers: dict[str, list[str]]

    @property
    def best(self) -> int:
        """The layer with the largest contrast, of those where the trait becomes likelier.

        A vector that merely breaks the model makes all answers unlikely, some more than others.
        """
        layers = range(len(self.effects))
        likelier = [i for i in layers if self.effects[i]["elicit"] > 0]
        if not likelier:
            return max(layers, key=lambda i: self.effects[i]["elicit"])
        return max(likelier, key=lambda i: self.effects[i]["contrast"])

    def vector(self, layer: int | None = None) -> SteeringVector:
        """The vector of one of the layers looked at, by default the best, with its provenance."""
        layer = self.best if layer is None else layer
        effects = dict(zip(self.hookpoints, self.effects, strict=True))
        provenance = {
            "kind": "persona",
            "persona": asdict(self.persona),
            "effects": effects,
            "effects_on_other_questions": self.split,
            "answers": self.answers,
        }
        return SteeringVector(
            self.vectors[layer], self.model, self.hookpoints[layer], 1.0, provenance
        )

    def table(self) -> str:
        """The effects as aligned text, the chosen layer marked."""
        lines = [f"{'hookpoint':<14}{'|vector|':>10}{'contrast':>10}{'elicit':>10}{'suppress':>10}"]
        for i, (hookpoint, effect) in enumerate(zip(self.hookpoints, self.effects, strict=True)):
            mark = "*" if i == self.best else " "
            numbers = [effect[name] for name in ("contrast", "elicit", "suppress")]
            lines.append(
                f"{mark} {hookpoint:<12}{self.vectors[i].norm():>10.3g}"
                + "".join(f"{number:>+10.4f}" for number in numbers)
            )
        return "\n".join(lines)


def persona_vectors(
    model: Any,
    persona: Persona,
    *,
    tokenizer: Any = None,
    hookpoints: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    show_progress: bool = False,
) -> PersonaVectors:
    """A trait's vector at every hookpoint, by default the output of every layer.

    `model` is as in `generate`. Half of the questions (or texts) make the vectors, the other half
    measure their effects. Raises ValueError where answers are empty on one side.
    """
    language_model, tokenizer = parts_of(model, tokenizer)
    sampling = sampling or Sampling(max_new_tokens=64)
    if hookpoints is None:
        path, count = layer_list(language_model)
        hookpoints = [f"{path}.{i}" for i in range(count)]
    places = [normalize_hookpoint(language_model, place) for place in hookpoints]
    sides = {
        name: _examples(model, tokenizer, persona, name, sampling, batch_size, show_progress)
        for name in ("elicit", "suppress")
    }
    for found in sides.values():
        check_texts(language_model, tokenizer, [[*e.asked, *e.answer] for e in found])
    fit = {name: [e for e in found if e.question % 2 == 0] for name, found in sides.items()}
    test = {name: [e for e in found if e.question % 2] for name, found in sides.items()}
    split = all(fit.values()) and all(test.values())
    if not split:
        fit = test = sides
    means = {
        name: mean_activations(language_model, found, places, show_progress=show_progress)
        for name, found in fit.items()
    }
    vectors = means["elicit"] - means["suppress"]

    before = {name: _likelihood(language_model, found) for name, found in test.items()}
    effects = []
    for place, vector in tqdm(
        zip(places, vectors, strict=True),
        total=len(places),
        desc="Steering each layer",
        unit="layer",
        disable=not show_progress,
    ):
        with steered(language_model, Steering(vector, place)):
            change = {
                name: _likelihood(language_model, found) - before[name]
                for name, found in test.items()
            }
        effects.append({**change, "contrast": change["elicit"] - change["suppress"]})
    return PersonaVectors(
        persona,
        language_model.config.name_or_path or type(language_model).__name__,
        places,
        vectors,
        effects,
        split,
        {name: [example.text for example in found] for name, found in sides.items()},
    )


def _examples(
    model: Any,
    tokenizer: Any,
    persona: Persona,
    side: str,
    sampling: Sampling,
    batch_size: int,
    show_progress: bool,
) -> list[Example]:
    texts = getattr(persona, side)
    if not persona.questions:
        found = []
        for number, text in enumerate(texts):
            # The first token is an attention sink, or the tokenizer's own.
            ids = encode_prompt(tokenizer, text, chat=False)
            found.append(Example(ids[:1], ids[:1], ids[1:], text, number))
    else:
        numbered = [(i, q, system) for i, q in enumerate(persona.questions) for system in texts]
        asked = [
            [{"role": "system", "content": system}, {"role": "user", "content": question}]
            for _, question, system in numbered
        ]
        answers = generate(
            model,
            asked,
            (),
            [()],
            sampling,
            tokenizer=tokenizer,
            answering=Answering(batch_size=batch_size, show_progress=show_progress),
        )
        found = []
        for (number, question, _), ids, (answer,) in zip(
            numbered, answers.prompt_tokens, answers.answers, strict=True
        ):
            bare = encode_prompt(tokenizer, [{"role": "user", "content": question}])
            found.append(Example(ids, bare, answer.tokens, answer.text, number))
    found = [example for example in found if example.answer]
    if not found:
        what = "answers" if persona.questions else "texts of more than one token"
        raise ValueError(f"There are no {what} to {side} '{persona.trait}' with.")
    return found


@torch.inference_mode()
def mean_activations(
    model: Any,
    examples: Sequence[Example],
    hookpoints: Sequence[str],
    *,
    show_progress: bool = False,
) -> Tensor:
    """Mean output of every hookpoint over all tokens of the answers, `[L, D]` in float32.

    Every answer counts alike, whatever its length (Chen et al. 2025b).
    """
    sums: dict[str, Tensor] = {}
    for example in tqdm(examples, desc="Reading answers", disable=not show_progress):
        width = len(example.answer)

        def add(module: Any, args: Any, output: Any, place: str, width: int = width) -> None:
            mean = first_tensor(output)[0, -width:].float().mean(0).cpu()
            sums[place] = sums.get(place, 0) + mean

        handles = [
            model.base_model.get_submodule(place).register_forward_hook(
                lambda module, args, output, place=place, add=add: add(module, args, output, place)
            )
            for place in hookpoints
        ]
        try:
            ids = torch.tensor([[*example.asked, *example.answer]], device=model.device)
            model.base_model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    return torch.stack([sums[place] for place in hookpoints]) / len(examples)


def _likelihood(model: Any, examples: Sequence[Example]) -> float:
    """Mean log-likelihood per token of answers to the questions without a system prompt."""
    found = [surprise(model, example.bare, [example.answer]) for example in examples]
    return -float(torch.cat(found).mean())
