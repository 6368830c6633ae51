"""What to steer: the models of a run's latents, each with its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ..crosscoders import Crosscoder
from ..crosscoders.shared_basis import LEAST_R2
from ..evaluation.top import check_latents, largest_activations
from ..hardware import pick_device
from ..harvest.model_identity import short_names
from ..hashing import hash_bytes
from ..runs.models import End, ends_of
from ..runs.run import Run
from .basis import (
    ENOUGH_PAIRS,
    IdentityFit,
    Map,
    identity_line,
    identity_stitching,
    may_share_basis,
)
from .steering import Mode, Steering
from .stitching import Stitching
from .vectors import SteeringVector


@dataclass(frozen=True)
class Target:
    """A model, and what it is steered with."""

    name: str
    revision: str | None
    steering: list[Steering]
    checkpoint: str | None = None
    """Digest that the model's checkpoint must have, if known."""

    made_in: SteeringVector | None = None
    """The vector, where this may be another model than that which it was made in."""

    same_basis: bool = False
    """Whether that vector serves here as it is, whatever the models say."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values that tell the steering with one vector from any other."""
        (steering,) = self.steering
        return {
            "model": self.name,
            "revision": self.revision,
            "hookpoint": steering.hookpoint,
            "label": steering.label,
            "norm": float(steering.vector.norm()),
            "vector": hash_bytes(steering.vector.cpu().numpy().tobytes()),
        }


def labelled(targets: Sequence[Target]) -> dict[str, Target]:
    """Targets by their models' names, with what tells them apart where these are equal."""
    names = short_names([target.name for target in targets])
    if len(set(names)) < len(names):
        names = [
            f"{name} {target.steering[0].hookpoint} ({number})"
            for number, (name, target) in enumerate(zip(names, targets, strict=True), 1)
        ]
    return dict(zip(names, targets, strict=True))


@dataclass(frozen=True)
class TargetOptions:
    """How latents of a run are steered."""

    source: int | None = None
    """model to steer (the latents' own, else 0)"""

    stitching: Path | None = None
    """also steer the other model, by this folder of `stitch`"""

    map: Map = "auto"
    """what carries a latent to a model that it does not write to: --stitching, or the identity
    where both models share a basis, as a model and its fine-tune do (auto); `identity` steers the
    other model as well, without asking whether they do"""

    mode: Mode = "add"
    """what is done ({default})"""

    tokens: str = "all"
    """all, prompt, generated or a span FIRST:LAST ({default})"""

    s_max: float | None = None
    """largest activation, if known"""

    pairs: int = 100_000
    """pairs to look for s_max in ({default:,})"""

    seed: int | None = None
    """which of several --init_seeds"""

    backend: Literal["auto", "nnsight", "hooks"] = "auto"
    """what steers; auto is nnsight where it is installed"""

    @property
    def of_steering(self) -> dict[str, Any]:
        """What is asked of every `Steering`; raises ValueError for `tokens` that are none."""
        return {"mode": self.mode, "tokens": _tokens(self.tokens)}


def vector_target(
    files: Sequence[Path], asked: TargetOptions | None = None, model: str | None = None
) -> Target:
    """The model of vectors that were saved, which act together, or `model` in its place.

    Raises ValueError for vectors of different models.
    """
    asked = asked or TargetOptions()
    options = asked.of_steering
    vectors = [SteeringVector.load(path) for path in files]
    if len({vector.checkpoint or vector.model for vector in vectors}) > 1:
        raise ValueError("Vectors that act together must be of one model.")
    first = vectors[0]
    steering = [
        vector.steering(**options, label=path.stem)
        for vector, path in zip(vectors, files, strict=True)
    ]
    if model is None:
        return Target(first.model, first.revision, steering, first.checkpoint)
    same_basis = asked.map == "identity"
    return Target(model, None, steering, made_in=first, same_basis=same_basis)


class LatentTargets(NamedTuple):
    """The models to steer with latents of a run."""

    targets: list[Target]
    note: str | None
    """Why vectors of one model serve in the other as they are, where they do."""


def latent_targets(
    run: Run,
    latents: Sequence[int],
    asked: TargetOptions | None = None,
    device: str | torch.device | None = None,
) -> LatentTargets:
    """The latents' own model, and with `stitching` the other one with their stitched vectors.

    Where `source` names a model that latents do not write to, it alone is steered, with what the
    stitching makes of them, or with the same vectors if both models share a basis (`basis`). Raises
    ValueError for everything that can be wrong about the vectors, before a model answers.
    """
    asked = asked or TargetOptions()
    options, device = asked.of_steering, pick_device(device)
    crosscoder = run.crosscoder(asked.seed, device)
    check_latents(crosscoder, latents)
    source = _source(crosscoder, asked, latents)
    origins = [_origin(crosscoder, latent, source) for latent in latents]
    away = next((origin for origin in origins if origin != source), None)
    stitching = None if asked.stitching is None else Stitching.load(asked.stitching)
    if stitching is not None:
        stitching.check_sources(crosscoder.sources)
    ends = ends_of(run.config, crosscoder.sources)
    identity = _identity(asked, crosscoder, ends, source, away)
    multiple, fit = run.config.outlier_multiple, None
    if identity is not None and asked.map != "identity":
        fit = IdentityFit(*identity.cfg.sources, multiple)

    if asked.s_max is not None:
        largest = torch.full((len(latents),), asked.s_max)
        if fit is not None:
            chunks = run.first_pairs(min(asked.pairs, ENOUGH_PAIRS), device).chunks
            for _ in fit.watch(chunks):
                pass
    else:
        chunks = run.first_pairs(asked.pairs, device).chunks
        watched = chunks if fit is None else fit.watch(chunks)
        largest = largest_activations(crosscoder, watched, torch.tensor(latents), multiple)
    if fit is not None and fit.r2() < LEAST_R2:
        raise _different_bases(ends, *fit.sources, f"the identity has an R2 of {fit.r2():.2f}")

    maps = stitching if identity is None else identity
    how = "stitched" if identity is None else "by the identity"
    note = None
    if identity is not None:
        first, second = (ends[s].model for s in identity.cfg.sources)
        note = identity_line(first, second, None if fit is None else fit.r2())

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
        return LatentTargets([_target(ends[source], mapped)], note)
    targets = [_target(ends[source], steering)]
    if maps is not None:
        mapped = [carried(one, source) for one in steering]
        targets.append(_target(ends[maps.other(source)], mapped))
    return LatentTargets(targets, note)


def _target(end: End, steering: list[Steering]) -> Target:
    return Target(end.model, end.revision, steering, end.checkpoint)


def _origin(crosscoder: Crosscoder, latent: int, source: int) -> int:
    """The source whose decoder says what a latent is: `source` if it writes there."""
    writes = crosscoder.decoder_norms()[latent] > 0
    if writes[source] or not writes.any():
        return source
    return int(writes.nonzero()[0, 0])


def _identity(
    asked: TargetOptions,
    crosscoder: Crosscoder,
    ends: Sequence[End],
    source: int,
    away: int | None,
) -> Stitching | None:
    """The identity between two of the run's sources, where it is to carry the latents.

    `away` is the source of a latent that does not write to `source`. Raises ValueError where the
    identity cannot be the map and none other is given.
    """
    given = asked.stitching is not None
    if asked.map == "stitching" and not given:
        raise ValueError("--map stitching needs --stitching, a folder of `stitch`.")
    if asked.map == "identity" and given:
        raise ValueError("Give --map identity or --stitching, not both.")
    if given or (asked.map == "auto" and away is None):
        return None
    pair = (source if away is None else away, source)
    if away is None:
        others = [s for s in range(len(ends)) if s != source]
        if len(others) > 1:
            raise ValueError("The run has several other models; --map identity cannot choose.")
        pair = (source, others[0])
    if asked.map == "auto" and not may_share_basis(crosscoder.sources, *pair):
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


def _source(crosscoder: Crosscoder, asked: TargetOptions, latents: Sequence[int]) -> int:
    """The source to steer: the one asked for, or the one that the latents are exclusive to."""
    count = len(crosscoder.d_sources)
    if asked.source is not None:
        if not 0 <= asked.source < count:
            raise ValueError(f"There are sources 0..{count - 1}, not {asked.source}.")
        return asked.source
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
