"""Shared latents that exclusive ones are compared with, drawn before anything is known of them."""

from __future__ import annotations

import random

from sparsify_crosscoder.evaluation.false_exclusives import EXCLUSIVE_NORM

from .stage import Context
from .stages.cache import alive
from .verification import VerificationOptions


def shared_nulls(ctx: Context, source: int) -> list[int]:
    """The shared latents that a source's exclusive ones are compared with."""
    return drawn_shared(ctx, source, null_draw(ctx, source))


def shared_candidates(ctx: Context, source: int) -> list[int]:
    """These, and as many others that may take the place of those that no explanation fits."""
    first, options = shared_nulls(ctx, source), ctx.options(VerificationOptions)
    others = [latent for latent in _alive_shared(ctx, source) if latent not in first]
    draw = random.Random(f"more nulls {options.audit_seed} {source}")
    return [*first, *draw.sample(others, min(options.nulls, len(others)))]


def null_draw(ctx: Context, source: int) -> random.Random:
    """What draws a source's nulls: the shared latents first, then random directions."""
    return random.Random(f"nulls {ctx.options(VerificationOptions).audit_seed} {source}")


def _alive_shared(ctx: Context, source: int) -> list[int]:
    norms = ctx.crosscoder.relative_decoder_norm(source)
    shared = ((norms < EXCLUSIVE_NORM) & (norms > 1 - EXCLUSIVE_NORM)).nonzero()[:, 0].tolist()
    return alive(ctx, shared)


def drawn_shared(ctx: Context, source: int, draw: random.Random) -> list[int]:
    """As many shared latents as there are to be nulls, in order."""
    shared = _alive_shared(ctx, source)
    return sorted(draw.sample(shared, min(ctx.options(VerificationOptions).nulls, len(shared))))
