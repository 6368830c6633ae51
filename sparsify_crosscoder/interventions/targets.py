"""What to steer: the models of a run's latents, each with its vectors, from a command's options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..crosscoders import Crosscoder
from .command_parts import device_of, ends_of
from .steering import Steering
from .stitching import Stitching


@dataclass(frozen=True)
class Target:
    """A model, and what it is steered with."""

    name: str
    revision: str | None
    steering: list[Steering]


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how latents of a run are steered; `latent_targets` reads them."""
    parser.add_argument(
        "--source", type=int, default=None, help="model to steer (the latents' own, else 0)"
    )
    parser.add_argument(
        "--stitching", type=Path, help="also steer the other model, by this folder of `stitch`"
    )
    parser.add_argument(
        "--mode", choices=("add", "ablate", "clamp"), default="add", help="what is done (add)"
    )
    parser.add_argument(
        "--tokens", default="all", help="all, prompt, generated or a span FIRST:LAST (all)"
    )
    parser.add_argument("--s_max", type=float, default=None, help="largest activation, if known")
    parser.add_argument(
        "--pairs", type=int, default=100_000, help="pairs to look for s_max in (100,000)"
    )
    parser.add_argument("--seed", type=int, default=None, help="which of several --init_seeds")
    parser.add_argument(
        "--backend",
        choices=("auto", "nnsight", "hooks"),
        default="auto",
        help="what steers; auto is nnsight where it is installed",
    )


def steering_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of every `Steering`."""
    return {"mode": args.mode, "tokens": _tokens(args.tokens)}


def latent_targets(args: argparse.Namespace, latents: Sequence[int]) -> list[Target]:
    """The latents' own model, and with `--stitching` the other one with their stitched vectors.

    Raises ValueError for everything that can be wrong about the vectors, before a model answers.
    """
    from ..cli import load_run_config
    from ..evaluation.top import largest_activations, run_pairs

    options = steering_options(args)
    device = device_of(args)
    configured = load_run_config(args.run)
    crosscoder = Crosscoder.load_one(args.run, args.seed, device)
    for latent in latents:
        if not 0 <= latent < crosscoder.num_latents:
            raise ValueError(f"There are latents 0..{crosscoder.num_latents - 1}, not {latent}.")
    source = _source(crosscoder, args, latents)
    stitching = None if args.stitching is None else Stitching.load(args.stitching)
    if stitching is not None:
        stitching.check_sources(crosscoder.sources)
    if args.s_max is not None:
        largest = torch.full((len(latents),), args.s_max)
    else:
        chunks, _, _ = run_pairs(args.run, args.pairs, device)
        largest = largest_activations(crosscoder, chunks, torch.tensor(latents))
    steering = [
        Steering.of_latent(crosscoder, latent, source, float(s_max), **options)
        for latent, s_max in zip(latents, largest, strict=True)
    ]
    ends = ends_of(configured, crosscoder)
    targets = [Target(ends[source].model, ends[source].revision, steering)]
    if stitching is not None:
        other = ends[stitching.other(source)]
        mapped = [
            Steering(
                stitching.direction(one.vector, source),
                other.hookpoint,
                one.scale,
                label=f"{one.label}, stitched",
                **options,
            )
            for one in steering
        ]
        targets.append(Target(other.model, other.revision, mapped))
    return targets


def with_backend(model: Any, tokenizer: Any, backend: str) -> Any:
    """The model as `--backend` has it steered; raises ValueError where nnsight is missing."""
    if backend == "hooks":
        return model
    try:
        from nnsight import TransformersModel
    except ImportError:
        if backend == "auto":
            return model
        raise ValueError(
            "nnsight is not installed: pip install 'sparsify-crosscoder[nnsight]', or use "
            "--backend hooks."
        ) from None
    return TransformersModel(model, tokenizer=tokenizer, task="text-generation")


def _source(crosscoder: Crosscoder, args: argparse.Namespace, latents: Sequence[int]) -> int:
    """The source to steer: the one asked for, or the one that the latents are exclusive to."""
    count = len(crosscoder.d_sources)
    if args.source is not None:
        if not 0 <= args.source < count:
            raise ValueError(f"There are sources 0..{count - 1}, not {args.source}.")
        return args.source
    owners = {s for s in range(count) for i in latents if i in crosscoder.partition.exclusive(s)}
    if len(owners) > 1:
        raise ValueError(
            "The latents are exclusive to different models; say with --source which to steer, or "
            "steer them one at a time."
        )
    return owners.pop() if owners else 0


def _tokens(value: str) -> Any:
    """`all`, `prompt`, `generated`, or a span `FIRST:LAST`."""
    if ":" not in value:
        return value
    try:
        first, last = (int(edge) for edge in value.split(":"))
    except ValueError:
        raise ValueError(f"--tokens {value!r} is no span; write 0:5 or -3:20.") from None
    return first, last
