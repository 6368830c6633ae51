"""One source's half of a crosscoder: a sparse autoencoder of that model's raw activations."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..endings import UsageError
from .parameters import CrosscoderParameters


@dataclass(frozen=True)
class Half:
    """What a half computes of raw `x` [N, D], in float64 and with the normalisation folded in.

    Pre-activations are `(x - centre) @ weight.T + bias`, those that the crosscoder has where the
    other sources' normalised activations are 0; the reconstruction is `acts @ decoder + centre`.
    Latents that the source may not read have no weights, and a bias of -1.
    """

    weight: Tensor
    """Encoder, `[M, D]`."""

    bias: Tensor
    """`[M]`."""

    decoder: Tensor
    """`[M, D]`."""

    centre: Tensor
    """What no active latent decodes to, `[D]`."""

    def without(self, latents: Tensor) -> Half:
        """The half in which the latents of a mask `[M]` never fire."""
        weight = self.weight.masked_fill(latents[:, None], 0)
        return Half(weight, self.bias.masked_fill(latents, -1), self.decoder, self.centre)


@torch.no_grad()
def half_of(crosscoder: CrosscoderParameters, source: int) -> Half:
    """The half of one source; raises IndexError for one that there is not."""
    return _half(_in_float64(crosscoder), source)


def _in_float64(crosscoder: CrosscoderParameters) -> CrosscoderParameters:
    return deepcopy(crosscoder).cpu().double()


def _half(wide: CrosscoderParameters, source: int) -> Half:
    weight = wide.encoder_weight(source)
    columns, factor = wide.columns[source], wide.factors[source].double()
    b_dec = wide.b_dec[columns]
    # The crosscoder does not subtract b_dec before it encodes.
    bias = wide.encoder.bias + weight @ b_dec
    centre = b_dec / factor + wide.mean[columns].double()
    half = Half(weight * factor, bias, wide.decoder(source) / factor, centre)
    unread = torch.zeros(wide.num_latents, dtype=torch.bool)
    for block in wide.partition.blocks:
        unread[block.start : block.stop] = source not in block.sources
    return half.without(unread)


@torch.no_grad()
def thresholded_half(crosscoder: CrosscoderParameters, source: int) -> tuple[Half, Tensor]:
    """A half whose latents fire where the pre-activation exceeds a threshold of each, `[M]`.

    The crosscoder's thresholds are levels of its scores, which are activations times decoder norms;
    these are levels of the pre-activation. Raises UsageError if it has not learned all of them.
    """
    if not torch.isfinite(crosscoder.threshold).all():
        raise UsageError(
            "The crosscoder has learned no inference threshold, by which this format says what is "
            "active: train it for longer, or use --format sparsify, which keeps the k largest."
        )
    wide = _in_float64(crosscoder)
    levels = torch.empty(wide.num_latents, dtype=torch.float64)
    for group, level in zip(wide.partition.groups, wide.threshold, strict=True):
        levels[wide.partition.group_slice(group)] = level.double()
    half, norms = _half(wide, source), wide.score_norms()
    if norms is not None:
        half = half.without(norms == 0)  # with a score of 0: never active
        levels = (levels / norms).nan_to_num(0, posinf=0)
    # A score that equals its threshold is active, and one of 0 is not.
    below = torch.nextafter(levels.float(), torch.tensor(-torch.inf))
    return half, below.clamp_min(0)
