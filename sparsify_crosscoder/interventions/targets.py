"""What to steer: the models of a run's latents, each with its vectors, from a command's options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..crosscoders import Crosscoder
from ..runs.models import End, ends_of
from .basis import (
    ENOUGH_PAIRS,
    LEAST_R2,
    MAPS,
    IdentityFit,
    identity_line,
    identity_stitching,
    may_share_basis,
)
from .command_parts import device_of
from .steering import Steering
from .stitching import Stitching


@dataclass(frozen=True)
class Target:
    """A model, and what it is steered with."""

    name: str
    revision: str | None
    steering: list[Steering]
    checkpoint: str | None = None
    """Digest that the model's checkpoint must have, if known."""


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how latents of a run are steered; `latent_targets` reads them."""
    parser.add_argument(
        "--source", type=int, default=None, help="model to steer (the latents' own, else 0)"
    )
    parser.add_argument(
        "--stitching", type=Path, help="also steer the other model, by this folder of `stitch`"
    )
    parser.add_argument(
        "--map",
        choices=MAPS,
        default="auto",
        help="what carries a latent to a model that it does not write to: --stitching, or the "
        "identity where both models share a basis, as a model and its fine-tune do (auto); "
        "`identity` steers the other model as well, without asking whether they do",
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

    Where `--source` names a model that latents do not write to, it alone is steered, with what the
    stitching makes of them, or with the same vectors if both models share a basis (`basis`). Raises
    ValueError for everything that can be wrong about the vectors, before a model answers.
    """
    from ..evaluation.top import largest_activations
    from ..runs.config import load_run_config
    from ..runs.pairs import first_pairs

    options = steering_options(args)
    device = device_of(args)
    configured = load_run_config(args.run, args.hf_token, trust_remote_code=args.trust_remote_code)
    crosscoder = Crosscoder.load_one(args.run, args.seed, device)
    for latent in latents:
        if not 0 <= latent < crosscoder.num_latents:
            raise ValueError(f"There are latents 0..{crosscoder.num_latents - 1}, not {latent}.")
    source = _source(crosscoder, args, latents)
    origins = [_origin(crosscoder, latent, source) for latent in latents]
    away = next((origin for origin in origins if origin != source), None)
    stitching = None if args.stitching is None else Stitching.load(args.stitching)
    if stitching is not None:
        stitching.check_sources(crosscoder.sources)
    ends = ends_of(configured, crosscoder.sources)
    identity = _identity(args, crosscoder, ends, source, away)
    fit = None if identity is None or args.map == "identity" else IdentityFit(*identity.cfg.sources)

    if args.s_max is not None:
        largest = torch.full((len(latents),), args.s_max)
        if fit is not None:
            chunks, _, _ = first_pairs(configured, min(args.pairs, ENOUGH_PAIRS), device)
            for _ in fit.watch(chunks):
                pass
    else:
        chunks, _, _ = first_pairs(configured, args.pairs, device)
        watched = chunks if fit is None else fit.watch(chunks)
        wanted, multiple = torch.tensor(latents), configured.outlier_multiple
        largest = largest_activations(crosscoder, watched, wanted, multiple)
    if fit is not None and fit.r2() < LEAST_R2:
        raise _different_bases(ends, *fit.sources, f"the identity has an R2 of {fit.r2():.2f}")

    maps = stitching if identity is None else identity
    how = "stitched" if identity is None else "by the identity"
    if identity is not None:
        first, second = (ends[s].model for s in identity.cfg.sources)
        print(identity_line(first, second, None if fit is None else fit.r2()))

    def carried(one: Steering, origin: int) -> Steering:
        assert maps is not None
        target = maps.other(origin)
        center = crosscoder.mean[crosscoder.columns[target]].float().cpu()
        return Steering(
            maps.direction(one.vector, origin),
            ends[target].hookpoint,
            one.scale,
            center=center if identity is not None else None,
            label=f"{one.label}, {how}",
            **options,
        )

    steering = [
        Steering.of_latent(crosscoder, latent, origin, float(s_max), **options)
        for latent, origin, s_max in zip(latents, origins, largest, strict=True)
    ]
    if away is not None:
        mapped = [
            one if origin == source else carried(one, origin)
            for one, origin in zip(steering, origins, strict=True)
        ]
        return [_target(ends[source], mapped)]
    targets = [_target(ends[source], steering)]
    if maps is not None:
        mapped = [carried(one, source) for one in steering]
        targets.append(_target(ends[maps.other(source)], mapped))
    return targets


def _target(end: End, steering: list[Steering]) -> Target:
    return Target(end.model, end.revision, steering, end.checkpoint)


def _origin(crosscoder: Crosscoder, latent: int, source: int) -> int:
    """The source whose decoder says what a latent is: `source` if it writes there."""
    writes = crosscoder.decoder_norms()[latent] > 0
    if writes[source] or not writes.any():
        return source
    return int(writes.nonzero()[0, 0])


def _identity(
    args: argparse.Namespace,
    crosscoder: Crosscoder,
    ends: Sequence[End],
    source: int,
    away: int | None,
) -> Stitching | None:
    """The identity between two of the run's sources, where it is to carry the latents.

    `away` is the source of a latent that does not write to `source`. Raises ValueError where the
    identity cannot be the map and none other is given.
    """
    given = args.stitching is not None
    if args.map == "stitching" and not given:
        raise ValueError("--map stitching needs --stitching, a folder of `stitch`.")
    if args.map == "identity" and given:
        raise ValueError("Give --map identity or --stitching, not both.")
    if given or (args.map == "auto" and away is None):
        return None
    pair = (source if away is None else away, source)
    if away is None:
        others = [s for s in range(len(ends)) if s != source]
        if len(others) > 1:
            raise ValueError("The run has several other models; --map identity cannot choose.")
        pair = (source, others[0])
    if args.map == "auto" and not may_share_basis(crosscoder.sources, *pair):
        raise _different_bases(ends, *pair, "they are read at other places or widths")
    widths = [crosscoder.d_sources[s] for s in pair]
    if widths[0] != widths[1]:
        raise _different_bases(ends, *pair, f"they are {widths[0]} and {widths[1]} wide")
    return identity_stitching(widths[0], pair)


def _different_bases(ends: Sequence[End], first: int, second: int, why: str) -> ValueError:
    return ValueError(
        f"These latents write nothing to {ends[second].model}, and it does not share the basis of "
        f"{ends[first].model} ({why}), so their vectors mean nothing there. Make maps with "
        "`sparsify-crosscoder stitch RUN --out FOLDER` and name them with --stitching FOLDER."
    )


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
