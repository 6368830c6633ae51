"""What is verified by steering: latents that matter, others drawn at random, and nulls (B.5)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.evaluation.filter import FilterRecord
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.interventions.stitching import Stitching

from ..explaining import flagging
from ..explaining.interpretability import Interpretability
from .shared_latents import drawn_shared, null_draw, shared_candidates
from .stage import Context
from .stages.cache import Cache
from .stages.explain import Explain
from .stages.filter import Filter
from .stages.score import Score
from .verification import ChosenCounts, VerificationOptions

Why = Literal["flagged", "listed", "kept", "sample", "shared", "random"]


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


@dataclass(frozen=True, eq=False)
class Chosen:
    """The directions to verify, and how they were chosen."""

    directions: list[Direction]
    counts: ChosenCounts

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        directions = [
            {"name": one.name, "why": one.why, "source": one.source, "latent": one.latent}
            for one in self.directions
        ]
        return {**asdict(self.counts), "directions": directions}


def directions_to_verify(ctx: Context) -> Chosen:
    """The directions to verify.

    Verified are latents that are exclusive by their norm: the flagged ones, then those of listed
    findings, which are all that a finding is named by and what the filter keeps besides, then
    others that it keeps, each in the order of the list of differences; and a random sample of the
    rest that is interpretable. Without a judge none is flagged, and the sample is of all the rest.
    Nulls are of the same models: shared latents that fire, interpretable ones where a judge calls
    some so, and random directions as long as the latents' own.
    """
    owners = {
        int(latent): s for s, some in enumerate(called_exclusive(ctx.crosscoder)) for latent in some
    }
    options, explained = ctx.options(VerificationOptions), ctx.output(Explain)
    autointerp, decisions = explained.autointerp, ctx.output(Score)
    flags = flagging.load_flags(autointerp.folder) if ctx.judged else {}
    filtered = ctx.output(Filter)
    scores, listed = filtered.scores, filtered.listed
    answered = [latent for latent in explained.answered if latent in owners]
    names = {latent: autointerp.name(latent) for latent in answered}

    answered.sort(key=lambda n: (-listed.get(n, 0.0), -scores.get(n, 0.0), n))
    flagged = [i for i in answered if (flag := flags.get(names[i])) is not None and flag.harmful]
    candidates: list[tuple[int, Why]] = [(latent, "flagged") for latent in flagged]
    candidates += listed_or_kept([one for one in answered if one not in flagged], filtered)
    verified = candidates[: options.verify]
    others = sorted({*answered} - {latent for latent, _ in candidates})
    readable = [latent for latent in others if _readable(decisions.get(names[latent]))]
    draw = random.Random(f"sample {options.audit_seed}")
    pool = readable or others
    sample = sorted(draw.sample(pool, min(options.sample, len(pool))))

    drawn: list[tuple[int, Why]] = [(latent, "sample") for latent in sample]
    found = [
        _of_latent(ctx, latent, owners[latent], names[latent], why)
        for latent, why in [*verified, *drawn]
    ]
    nulls = [null for s in sorted({one.source for one in found}) for null in _nulls(ctx, s, found)]
    reasons = Counter(why for _, why in candidates)
    counts = ChosenCounts(
        reasons["flagged"],
        reasons["kept"],
        len(verified),
        len(sample),
        "interpretable" if readable else "explained" if ctx.judged else "described",
        len(pool),
        reasons["listed"],
    )
    return Chosen([*found, *nulls], counts)


def listed_or_kept(ranked: Sequence[int], filtered: FilterRecord) -> list[tuple[int, Why]]:
    """Of latents in the order of the list those that findings are named by and the kept ones.

    Kept ones that are in no finding come last.
    """
    leaders = {row["latent"] for row in filtered.findings}
    inside = leaders | {one["latent"] for row in filtered.findings for one in row["members"]}
    kept = {one.latent for one in filtered.latents.values() if one.verdict == "kept"}
    first = [latent for latent in ranked if latent in leaders | (inside & kept)]
    last = [latent for latent in ranked if latent in kept - inside]
    return [(latent, "kept" if latent in kept else "listed") for latent in [*first, *last]]


def _nulls(ctx: Context, source: int, found: Sequence[Direction]) -> list[Direction]:
    draw = null_draw(ctx, source)
    drawn = _fitting_shared(ctx, source, drawn_shared(ctx, source, draw))
    nulls = [
        _of_latent(ctx, latent, source, f"shared-{source}-{latent}", "shared") for latent in drawn
    ]
    length = median(float(one.vector.norm()) * one.scale for one in found if one.source == source)
    for number in range(ctx.options(VerificationOptions).nulls):
        generator = torch.Generator().manual_seed(draw.getrandbits(31))
        vector = torch.randn(ctx.crosscoder.d_sources[source], generator=generator)
        vector = length * torch.nn.functional.normalize(vector, dim=0)
        nulls.append(Direction(f"random-{source}-{number}", "random", source, vector, 1.0))
    return nulls


def _fitting_shared(ctx: Context, source: int, drawn: list[int]) -> list[int]:
    """Candidates that pass the detection test, as exclusive latents do that they are compared with
    (3.2.2); those that were drawn where none does, or not all were asked about."""
    explained, decisions = ctx.output(Explain), ctx.output(Score)
    candidates = shared_candidates(ctx, source)
    if not {*explained.latents, *explained.compared}.issuperset(candidates):
        return drawn
    names = {latent: explained.autointerp.name(latent) for latent in candidates}
    passed = [latent for latent in candidates if _readable(decisions.get(names[latent]))]
    return sorted(passed[: ctx.options(VerificationOptions).nulls]) or drawn


def _readable(decision: Interpretability | None) -> bool:
    return decision is not None and bool(decision.interpretable)


def _of_latent(ctx: Context, latent: int, source: int, name: str, why: Why) -> Direction:
    s_max = float(ctx.output(Cache).statistics.max_activation[latent])
    steering = Steering.of_latent(ctx.crosscoder, latent, source, s_max)
    return Direction(name, why, source, steering.vector, steering.scale, latent)
