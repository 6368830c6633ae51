"""`sparsify-crosscoder steer RUN --latents ...`: what a model does when it is pushed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..command_line import execute
from ..harvest.model_identity import checkpoint_digest, same_model, short_names
from ..harvest.sources import load_fast_tokenizer
from ..interventions.basis import LEAST_R2, identity_line, identity_r2
from ..interventions.command_parts import (
    CHAT,
    add_model_options,
    add_prompt_options,
    add_sampling_options,
    load_model,
    read_prompts,
    sampling,
)
from ..interventions.effects import DoseResponse, dose_response
from ..interventions.generation import PROMPTS, STRENGTHS, Sampling
from ..interventions.likeness import Changes, common_words, likeness, word_changes
from ..interventions.targets import (
    Target,
    add_target_options,
    latent_targets,
    steering_options,
    with_backend,
)
from ..interventions.vectors import SteeringVector

_SHOWN = 100


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Steer, measure, print and return everything as JSON values."""
    prompts, how = read_prompts(args), sampling(args)
    targets = _targets(args)
    words = _common_words(args, targets) if len(targets) > 1 else None
    names = short_names([target.name for target in targets])
    result: dict[str, Any] = {"prompts": prompts, "models": []}
    changes: list[list[Changes]] = []
    for number, target in enumerate(targets):
        model, tokenizer = load_model(args, target.name, target.revision, target.checkpoint)
        if args.vector is not None:
            _check_vectors(args, target, model, tokenizer)
        found = dose_response(
            with_backend(model, tokenizer, args.backend),
            prompts,
            target.steering,
            args.strengths,
            args.words,
            how,
            tokenizer=tokenizer,
            chat=CHAT[args.chat],
            batch_size=args.batch_size,
            show_progress=True,
        )
        if words is not None:
            changes.append(
                [
                    word_changes(
                        *(model, tokenizer, prompts, target.steering, dose, words[number]),
                        chat=CHAT[args.chat],
                    )
                    for dose in found.strengths
                ]
            )
        del model
        show(found, target, names[number])
        if args.plot is not None:
            labels = ", ".join(s.label or "vector" for s in target.steering)
            found.plot(_numbered(args.plot, number), f"{names[number]}: {labels}")
        described = [
            {
                "label": s.label,
                "hookpoint": s.hookpoint,
                "scale": s.scale,
                "norm": float(s.vector.norm()),
                "mode": s.mode,
                "tokens": s.tokens,
            }
            for s in target.steering
        ]
        result["models"].append({"model": target.name, "steering": described, **found.to_dict()})
    if changes:
        result["likeness"] = [
            {"strengths": row["strengths"], **asdict(likeness(a, b))}
            for row, a, b in zip(result["models"][0]["rows"], *changes, strict=True)
        ]
        print("\nthe other model's change of its next words, beside the model's own")
        for row in result["likeness"]:
            if any(row["strengths"]):
                dose = "/".join(f"{s:g}" for s in dict.fromkeys(row["strengths"]))
                print(f"{dose:>8}  correlation {row['correlation']:.3f}  size {row['size']:.3g}")
    return result


def _common_words(args: argparse.Namespace, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    return common_words(
        *(
            load_fast_tokenizer(
                t.name,
                revision=t.revision,
                token=args.hf_token,
                trust_remote_code=args.trust_remote_code,
            )
            for t in targets
        )
    )


def show(found: DoseResponse, target: Target, name: str) -> None:
    """Print the answers, shortened, and the dose-response table under a model's name."""
    what = " + ".join(
        f"{s.label or 'vector'} at {s.hookpoint} ({s.mode}, |vector| {s.vector.norm():.3g} x "
        f"{s.scale:.3g})"
        for s in target.steering
    )
    print(f"\n{name}: {what}")
    for answers in found.generations.answers:
        print(f"\n  {answers[0].prompt!r}")
        for answer in answers:
            dose = "/".join(f"{s:g}" for s in dict.fromkeys(answer.strengths))
            text = answer.text.replace("\n", "⏎")
            text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
            print(f"  {dose:>6}  {text}")
    print(f"\n{found.table()}")
    if found.words_left_out:
        print(f"not single tokens, so without a probability: {', '.join(found.words_left_out)}")


def _targets(args: argparse.Namespace) -> list[Target]:
    """The models to steer; everything that can be wrong about vectors is found here."""
    if (args.latents is None) == (args.vector is None):
        raise ValueError("Say what to steer with: --latents of a RUN, or --vector FILE.")
    if args.vector is None:
        if args.run is None:
            raise ValueError("--latents are those of a run; name its folder.")
        return latent_targets(args, args.latents)
    if args.stitching is not None:
        raise ValueError("--stitching goes with --latents of a run.")
    return [_of_vectors(args)]


def _of_vectors(args: argparse.Namespace) -> Target:
    options = steering_options(args)
    vectors = [SteeringVector.load(path) for path in args.vector]
    if len({vector.checkpoint or vector.model for vector in vectors}) > 1:
        raise ValueError("Vectors that act together must be of one model.")
    first = vectors[0]
    steering = [
        vector.steering(**options, label=path.stem)
        for vector, path in zip(vectors, args.vector, strict=True)
    ]
    if args.model is None:
        return Target(first.model, first.revision, steering, first.checkpoint)
    return Target(args.model, None, steering)


def _check_vectors(args: argparse.Namespace, target: Target, model: Any, tokenizer: Any) -> None:
    """Say whether vectors of another model serve in this one; raises ValueError if they do not."""
    vector = SteeringVector.load(args.vector[0])
    own = vector.model
    if args.model is None or same_model(
        {"name": own, "checkpoint": vector.checkpoint},
        {"name": args.model, "checkpoint": checkpoint_digest(args.model)},
    ):
        return
    if args.map == "identity":
        print(identity_line(own, target.name, None))
        return
    try:
        others, tokenizers = load_model(args, own, vector.revision, vector.checkpoint)
    except ValueError:
        print(
            f"{own} is not there any more as it was; the vector is used in {target.name} as it is."
        )
        return
    try:
        r2 = min(
            identity_r2((others, model), (tokenizers, tokenizer), one.hookpoint, PROMPTS)
            for one in target.steering
        )
        if r2 < LEAST_R2:
            raise ValueError(f"the identity has an R2 of {r2:.2f}")
    except ValueError as error:
        raise ValueError(
            f"The vector is of {own}, and {target.name} does not share its basis ({error}), so it "
            "means nothing there. Carry it over with `sparsify-crosscoder transfer RUN VECTOR`, "
            "or use it as it is with --map identity."
        ) from error
    print(identity_line(own, target.name, r2))


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_stem(f"{path.stem}-{number + 1}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder steer",
        description="Steer a model with latents of a run or with a saved vector at several "
        "strengths, show what it says, and measure what changed. A strength of 1 is a latent's "
        "largest activation.",
    )
    parser.add_argument("run", type=Path, nargs="?", help="run folder")
    parser.add_argument("--latents", type=int, nargs="+", help="latents, all steered together")
    parser.add_argument(
        "--vector", type=Path, nargs="+", help="files of persona or transfer instead of latents"
    )
    add_target_options(parser)
    parser.add_argument(
        "--model",
        default=None,
        help="the model of --vector, if it has moved, or one that shares its basis",
    )
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=list(STRENGTHS), help="strengths (0 to 10)"
    )
    parser.add_argument("--words", nargs="+", default=[], help="words whose probability to follow")
    parser.add_argument("--plot", type=Path, help="draw the dose-response curves to this file")
    add_prompt_options(parser)
    add_sampling_options(parser, Sampling().max_new_tokens)
    add_model_options(parser)
    return parser
