"""`sparsify-crosscoder persona MODEL PERSONA.json`: the vector of a trait."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..command_line import execute
from ..harvest.hookpoints import layer_list
from ..harvest.model_identity import checkpoint_digest, commit_of
from ..interventions.command_parts import (
    add_model_options,
    add_sampling_options,
    load_model,
    sampling,
)
from ..interventions.persona import Persona, persona_vectors
from ..interventions.vectors import SteeringVector


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Find a trait's vector, write it, print the layers' effects and return them."""
    persona = Persona.from_json(args.persona)
    if args.out.exists():
        SteeringVector.load(args.out)  # raises for what must not be overwritten
    how = sampling(args)
    if args.layers and args.hookpoints:
        raise ValueError("Give --layers or --hookpoints, not both.")
    model, tokenizer = load_model(args, args.model, args.revision)
    hookpoints = args.hookpoints
    if args.layers:
        path, _ = layer_list(model)
        hookpoints = [f"{path}.{layer}" for layer in args.layers]
    found = persona_vectors(
        model,
        persona,
        tokenizer=tokenizer,
        hookpoints=hookpoints,
        sampling=how,
        batch_size=16 if args.batch_size is None else args.batch_size,
        show_progress=True,
    )
    commit = commit_of(args.model, args.revision)
    vector = replace(
        found.vector(),
        model=args.model,
        checkpoint=checkpoint_digest(args.model, commit),
        revision=commit,
    )
    vector.save(args.out)
    if persona.questions:
        for side, answers in found.answers.items():
            print(f"{side}: {answers[0][:150]!r}")
    print(found.table())
    if not found.split:
        print("A single question or text: the effects are of the answers that made the vectors.")
    print(f"The vector of {vector.hookpoint} is in {args.out}.")
    return {
        "model": args.model,
        "persona": asdict(persona),
        "hookpoint": vector.hookpoint,
        "norm": float(vector.vector.norm()),
        "effects": dict(zip(found.hookpoints, found.effects, strict=True)),
        "effects_on_other_questions": found.split,
        "answers": found.answers,
        "vector": str(args.out),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder persona",
        description="Find the direction of a trait from answers under system prompts that elicit "
        "and suppress it, or from texts that have it and have it not, and choose the layer where "
        "steering with it has the largest effect on answers that it was not made from.",
    )
    parser.add_argument("model", help="hub id or folder of a causal language model")
    parser.add_argument(
        "persona", type=Path, help='a file {"trait", "elicit", "suppress", "questions"}'
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write the vector to")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to look at (all)")
    parser.add_argument("--hookpoints", nargs="+", help="the same as modules: layers.15")
    parser.add_argument("--revision", default=None, help="revision of the model")
    add_sampling_options(parser, 64)
    add_model_options(parser)
    return parser
