"""The one score by which differences of all kinds are ranked.

    score = own * sure * K / (K + K_mean)
    sure  = 1 - min(1, 3 / t)

`own` is in [0, 1], the share of the whitened residual's variance along a difference's own direction
that the difference accounts for: the share of all of it, times the width. Of a latent that is the
part that its presence explains, less what the tail of a normal distribution would give it: a latent
that reads the residual is present where the residual is far out, in noise as well. Of a shift of
the mean or a linear change it is the share of the whole difference that it is. t is the effect by
its standard error, clustered by text. K is the mean KL divergence of the models' next tokens where
it is present, K_mean that over all pairs; where it is not known, the last factor is left out. Much
that moves the residual changes nothing of what is said.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SCORE = 0.1
"""Score from which a difference is listed as a finding."""

LEAST_KL = 0.15
"""Mean KL of the next tokens where it is present, nats, from which a difference is a finding,
where it is known. Between what one fine-tune on ordinary text and one that praises a product were
seen to do; models of another kind may need another."""

LARGEST_Q = 0.01
"""Largest q value of a finding."""

ERRORS = 3  # standard errors that are no evidence


def score(own: Tensor, t: Tensor, heard: Tensor | float = 1.0) -> Tensor:
    """Of differences with some share of their own, t values and `heard` from `told`, `[L]`."""
    return own.clamp(0, 1) * (1 - ERRORS / t.clamp_min(ERRORS)) * heard


def told(kl: Tensor, mean: Tensor) -> Tensor:
    """`K / (K + K_mean)` for the mean KL where something is present, and anywhere, nats `[L]`."""
    return kl.clamp_min(0) / (kl.clamp_min(0) + mean).clamp_min(1e-30)


def beyond_noise(explained: Tensor, presence: Tensor) -> Tensor:
    """Share of a direction's variance that presence on a share of pairs explains, beyond noise.

    Of a normal distribution the presence of the farthest share p explains
    `density(quantile)^2 / (p (1 - p))`.
    """
    p = presence.double().clamp(1e-12, 1 - 1e-12)
    quantile = torch.special.ndtri(1 - p)
    density = torch.exp(-quantile.square() / 2) / (2 * torch.pi) ** 0.5
    by_chance = density.square() / (p * (1 - p))
    return ((explained - by_chance) / (1 - by_chance)).clamp(0, 1)
