"""What is verified by steering: latents that matter, others drawn at random, and nulls (B.5)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify_crosscoder.evaluation.false_exclusives import EXCLUSIVE_NORM, called_exclusive
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.interventions.stitching import Stitching

from ..explaining import flagging, interpretability
from ..explaining.interpretability import Interpretability
from .explain_stages import alive, explained_latents, filtered
from .workspace import Workspace

Why = Literal["flagged", "kept", "sample", "shared", "random"]


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in one model's residual stream, to be compared with its image in the other's."""

    name: str
    why: Why
    source: int
    vector: Tensor
    """In raw activations, `[D]`."""

    scale: float
    """Multiples of `vector` that a strength of 1 stands for: s_max of a latent."""

    latent: int | None = None

    @property
    def kind(self) -> Literal["feature", "shared", "random"]:
        """What a judge's result is filed under."""
        return self.why if self.why in ("shared", "random") else "feature"  # type: ignore[return-value]

    def steering(self, hookpoint: str) -> Steering:
        """What steers its own model."""
        return Steering(self.vector, hookpoint, self.scale)

    def stitched(self, hookpoint: str, stitching: Stitching) -> Steering:
        """What steers the other model."""
        return Steering(stitching.direction(self.vector, self.source), hookpoint, self.scale)


def directions_to_verify(work: Workspace) -> tuple[list[Direction], dict[str, Any]]:
    """The directions, and how they were chosen.

    Verified are latents that are exclusive by their norm: the flagged ones, then others that the
    filter keeps, each in the order of how exclusive it calls them, and a random sample of the rest
    that is interpretable. Without a judge none is flagged, and the sample is of all the rest. Nulls
    are of the same models: shared latents, and random directions as long as the latents' own.
    """
    owners = {
        int(latent): s
        for s, some in enumerate(called_exclusive(work.crosscoder))
        for latent in some
    }
    autointerp = work.autointerp()
    flags = flagging.load_flags(work.folder("explain")) if work.judged else {}
    decisions = interpretability.load(work.folder("score")) if work.judged else {}
    rows = filtered(work)["latents"]
    scores = {row["latent"]: row["score"] for row in rows}
    explained = [latent for latent in explained_latents(work) if latent in owners]
    names = {latent: autointerp.name(latent) for latent in explained}

    explained.sort(key=lambda latent: (-scores.get(latent, 0.0), latent))
    flagged = [i for i in explained if (flag := flags.get(names[i])) is not None and flag.harmful]
    passed = {row["latent"] for row in rows if row["verdict"] == "kept"}
    kept = [latent for latent in explained if latent in passed and latent not in flagged]
    candidates: list[tuple[int, Why]] = [(latent, "flagged") for latent in flagged]
    for latent in kept:
        candidates.append((latent, "kept"))
    verified = candidates[: work.args.verify]
    others = sorted({*explained} - {*flagged, *kept})
    readable = [latent for latent in others if _readable(decisions.get(names[latent]))]
    draw = random.Random(f"sample {work.args.audit_seed}")
    pool = readable or others
    sample = sorted(draw.sample(pool, min(work.args.sample, len(pool))))

    drawn: list[tuple[int, Why]] = [(latent, "sample") for latent in sample]
    found = [
        _of_latent(work, latent, owners[latent], names[latent], why)
        for latent, why in [*verified, *drawn]
    ]
    nulls = [null for s in sorted({one.source for one in found}) for null in _nulls(work, s, found)]
    facts = {
        "flagged": len(flagged),
        "kept": len(kept),
        "verified": len(verified),
        "sample": len(sample),
        "sampled_from": "interpretable"
        if readable
        else "explained"
        if work.judged
        else "described",
        "pool": len(pool),
    }
    return [*found, *nulls], facts


def _nulls(work: Workspace, source: int, found: Sequence[Direction]) -> list[Direction]:
    draw = _null_draw(work, source)
    drawn = _drawn_shared(work, source, draw)
    nulls = [
        _of_latent(work, latent, source, f"shared-{source}-{latent}", "shared") for latent in drawn
    ]
    length = median(float(one.vector.norm()) * one.scale for one in found if one.source == source)
    for number in range(work.args.nulls):
        generator = torch.Generator().manual_seed(draw.getrandbits(31))
        vector = torch.randn(work.crosscoder.d_sources[source], generator=generator)
        vector = length * torch.nn.functional.normalize(vector, dim=0)
        nulls.append(Direction(f"random-{source}-{number}", "random", source, vector, 1.0))
    return nulls


def shared_nulls(work: Workspace, source: int) -> list[int]:
    """The shared latents that a source's exclusive ones are compared with."""
    return _drawn_shared(work, source, _null_draw(work, source))


def _null_draw(work: Workspace, source: int) -> random.Random:
    return random.Random(f"nulls {work.args.audit_seed} {source}")


def _drawn_shared(work: Workspace, source: int, draw: random.Random) -> list[int]:
    norms = work.crosscoder.relative_decoder_norm(source)
    shared = ((norms < EXCLUSIVE_NORM) & (norms > 1 - EXCLUSIVE_NORM)).nonzero()[:, 0].tolist()
    shared = alive(work, shared)
    return sorted(draw.sample(shared, min(work.args.nulls, len(shared))))


def load_stitching(work: Workspace) -> Stitching:
    """The maps that directions are carried by."""
    return Stitching.load(work.args.stitching or work.folder("stitch") / "stitching")


def _readable(decision: Interpretability | None) -> bool:
    return decision is not None and bool(decision.interpretable)


def _of_latent(work: Workspace, latent: int, source: int, name: str, why: Why) -> Direction:
    s_max = float(work.cache.statistics.max_activation[latent])
    steering = Steering.of_latent(work.crosscoder, latent, source, s_max)
    return Direction(name, why, source, steering.vector, steering.scale, latent)
