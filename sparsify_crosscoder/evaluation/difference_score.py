"""The one score by which differences of all kinds are ranked.

    score    = strength * heard
    strength = own * sure
    sure     = 1 - min(1, 3 / t)
    heard    = (K / (K + 1/2))^2

`own` is in [0, 1], the share of the whitened residual's variance along a difference's own direction
that the difference accounts for: the share of all of it, times the width. Of a latent that is the
part that its presence explains, less what the tail of a normal distribution would give it: a latent
that reads the residual is present where the residual is far out, in noise as well. Of a shift of
the mean or a linear change it is the share of the whole difference that it is. t is the effect by
its standard error, clustered by text. K is the mean KL divergence of the models' next tokens, nats,
over what an assistant says in the texts in which it is present, each text alike: what is read in a
prompt is heard in the answer. Without conversations it is the KL where it is present; where that is
not known, `heard` is left out. Much that moves the residual changes nothing of what is said. A
finding is strong, and next tokens differ where it is present.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_STRENGTH = 0.1
"""Strength from which a difference is listed as a finding."""

LEAST_KL = 0.15
"""Mean KL of the next tokens where it is present, nats, from which a difference is a finding,
where it is known. Between what one fine-tune on ordinary text and one that praises a product were
seen to do; models of another kind may need another."""

LARGEST_Q = 0.01
"""Largest q value of a finding."""

ERRORS = 3  # standard errors that are no evidence
HALF_HEARD = 0.5  # nats


def strength(own: Tensor, t: Tensor) -> Tensor:
    """Of differences with some share of their own and t values, `[L]`."""
    return own.clamp(0, 1) * (1 - ERRORS / t.clamp_min(ERRORS))


def heard(kl: Tensor) -> Tensor:
    """In [0, 1], by the mean KL of what is said where something is present, `[L]`."""
    return (kl / (kl + HALF_HEARD)).clamp_min(0).square()


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
