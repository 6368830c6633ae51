"""`sparsify-crosscoder persona MODEL PERSONA.json`: the vector of a trait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..harvest.hookpoints import layer_list
from ..harvest.model_identity import checkpoint_digest, commit_of
from ..interventions.options import ModelOptions, SamplingOptions
from ..interventions.persona import Persona, persona_vectors
from ..interventions.vectors import SteeringVector


@dataclass(frozen=True)
class ShortSampling(SamplingOptions):
    """Answers of which a sentence or two is enough."""

    max_new_tokens: int = 64
    """length of an answer ({default})"""


@dataclass(frozen=True)
class Options:
    """Find the direction of a trait from answers under system prompts that elicit and suppress it,
    or from texts that have it and have it not, and choose the layer where steering with it has the
    largest effect on answers that it was not made from."""

    model: str = option(positional=True)
    """hub id or folder of a causal language model"""

    persona: Path = option(positional=True)
    """a file {"trait", "elicit", "suppress", "questions"}"""

    out: Path = option()
    """file to write the vector to"""

    layers: list[int] | None = None
    """layers to look at (all)"""

    hookpoints: list[str] | None = None
    """the same as modules: layers.15"""

    revision: str | None = None
    """revision of the model"""

    answers: ShortSampling = group(ShortSampling)
    models: ModelOptions = group(ModelOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder persona", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Find a trait's vector, write it, print the layers' effects and return them."""
    persona = Persona.from_json(options.persona)
    if options.out.exists():
        SteeringVector.load(options.out)  # raises for what must not be overwritten
    how = options.answers.sampling
    if options.layers and options.hookpoints:
        raise ValueError("Give --layers or --hookpoints, not both.")
    model, tokenizer = options.models.loading.load(options.model, options.revision)
    hookpoints = options.hookpoints
    if options.layers:
        path, _ = layer_list(model)
        hookpoints = [f"{path}.{layer}" for layer in options.layers]
    batch_size = options.answers.batch_size
    found = persona_vectors(
        model,
        persona,
        tokenizer=tokenizer,
        hookpoints=hookpoints,
        sampling=how,
        batch_size=16 if batch_size is None else batch_size,
        show_progress=True,
    )
    commit = commit_of(options.model, options.revision)
    vector = replace(
        found.vector(),
        model=options.model,
        checkpoint=checkpoint_digest(options.model, commit),
        revision=commit,
    )
    vector.save(options.out)
    if persona.questions:
        for side, answers in found.answers.items():
            print(f"{side}: {answers[0][:150]!r}")
    print(found.table())
    if not found.split:
        print("A single question or text: the effects are of the answers that made the vectors.")
    print(f"The vector of {vector.hookpoint} is in {options.out}.")
    return {
        "model": options.model,
        "persona": asdict(persona),
        "hookpoint": vector.hookpoint,
        "norm": float(vector.vector.norm()),
        "effects": dict(zip(found.hookpoints, found.effects, strict=True)),
        "effects_on_other_questions": found.split,
        "answers": found.answers,
        "vector": str(options.out),
    }
