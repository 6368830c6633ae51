"""Latent scaling (Minder et al. 2025): how much of every latent each model has, decoder or not.

An exclusive latent's decoder in the other models is 0 by structure or by training, which does not
prove that they lack what it stands for. They may have it in what is not reconstructed at all
(complete shrinkage), or reconstructed by other latents (latent decoupling).

L latents, S sources, D the sum of their widths, K folds of the pairs. What was estimated from all
folds and without each has `1 + K` in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..store.stream import ActivationStream
from .jackknife import squared_lengths, standard_error
from .latent_moments import LatentMoments, collect, left_out
from .latent_statistics import CHUNK_NUMBERS

Kind = Literal["error", "reconstruction"]
INTERVAL = 1.96  # standard errors


class Ratio(NamedTuple):
    """How much another source has of each latent, as a multiple of its own, `[L]` all three."""

    value: Tensor
    low: Tensor
    high: Tensor
    """Ends of its interval, in which it is in 19 of 20 cases."""

    def interval(self, i: int) -> list[float]:
        """The interval of one latent."""
        return [self.low[i].item(), self.high[i].item()]


@dataclass(frozen=True)
class LatentScaling:
    """Sizes of the best fitting vectors per unit of activation, squared, normalised space.

    For a latent with activation z the vector v of source s minimises `sum |z v + c - y|^2`, and its
    squared size is known without the bias that its error would give it. Minder et al. scale the
    latent's decoder, `v = beta d` without c; see `decoder_scaling`.
    """

    error_squares: Tensor
    """y is what the crosscoder leaves of the source, and what the latent itself adds to it,
    `[1 + K, L, S]`."""

    reconstruction_squares: Tensor
    """y is what all latents make of the source, `[1 + K, L, S]`."""

    firings: Tensor
    """Pairs on which each latent is active, `[L]`."""

    @property
    def error(self) -> Tensor:
        """Size in what is left, `[L, S]`."""
        return self.error_squares[0].clamp_min(0).sqrt()

    @property
    def reconstruction(self) -> Tensor:
        """Size in what is reconstructed, `[L, S]`."""
        return self.reconstruction_squares[0].clamp_min(0).sqrt()

    def ratios(self, sources: Tensor, kind: Kind = "error") -> Ratio:
        """The largest size in any other source as a multiple of that in `sources` [L].

        By `error` near 1: complete shrinkage; by `reconstruction`: latent decoupling. Both near 0:
        the others lack it.
        """
        squares = self.error_squares if kind == "error" else self.reconstruction_squares
        own = torch.zeros_like(squares[0], dtype=torch.bool)
        own.scatter_(1, sources[:, None], True)
        size = squares[:, own].view(squares.shape[:2])
        others = squares.masked_fill(own, -torch.inf).amax(2)
        ratio = (others / size.clamp_min(1e-30)).clamp(-1e12, 1e12)
        margin = INTERVAL * standard_error(ratio)
        return Ratio(*((ratio[0] + side * margin).clamp_min(0).sqrt() for side in (0, -1, 1)))

    @classmethod
    def join(cls, parts: Sequence[LatentScaling], order: Tensor) -> LatentScaling:
        """The same of the latents of several parts, in another order."""
        return cls(
            torch.cat([part.error_squares for part in parts], 1)[:, order],
            torch.cat([part.reconstruction_squares for part in parts], 1)[:, order],
            torch.cat([part.firings for part in parts])[order],
        )


class CutOffs(NamedTuple):
    """Ratios below which the other models lack a latent: where one in twenty nulls is below."""

    error: float
    reconstruction: float


def calibrated(error: Tensor, reconstruction: Tensor, level: float = 0.05) -> CutOffs:
    """Cut-offs from the ratios of latents of a null run, `[L]` both.

    A null is a real change without the thing looked for: another dtype, a rotation with noise, a
    neighbouring layer. Whatever is called exclusive there is in both models, so a share of `level`
    of such latents lies below. Raises ValueError where there are fewer than 20.
    """
    if len(error) < 20:
        raise ValueError(f"Cut-offs need the ratios of 20 latents of a null; got {len(error)}.")
    return CutOffs(*(float(some.double().quantile(level)) for some in (error, reconstruction)))


@torch.no_grad()
def latent_scaling(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    *,
    num_pairs: int | None = None,
    outlier_multiple: float = 2.0,
) -> LatentScaling:
    """Fit every latent's vectors over a stream's pairs, read as at inference."""
    moments = collect(
        crosscoder, stream, latents, num_pairs=num_pairs, outlier_multiple=outlier_multiple
    )
    return fitted_scaling(crosscoder, moments, latents)


@torch.no_grad()
def fitted_scaling(
    crosscoder: Crosscoder, moments: LatentMoments, latents: Tensor
) -> LatentScaling:
    """The best fitting vectors of latents `[L]` whose moments these are."""
    variance = moments.variances("cross").square().clamp_min(1e-30)
    z_mean = moments.z_sum / moments.pairs
    own = moments.z_squares - moments.z_sums * z_mean  # sums of z (z - mean z)
    squares = [
        torch.zeros(*variance.shape, len(crosscoder.columns), dtype=torch.float64) for _ in "er"
    ]
    mean, error_mean = ((of / moments.pairs).float() for of in (moments.x_sum, moments.error_sum))
    for some in _chunks(moments):
        decoders = _decoders(crosscoder, latents[some])
        sums = moments.z_sums[:, some, None].float()
        left = moments.error_cross[:, some] - sums * error_mean
        made = moments.cross[:, some] - sums * mean - left
        left += own[:, some, None].float() * decoders
        for result, vectors in zip(squares, (left, made), strict=True):
            for s, columns in enumerate(crosscoder.columns):
                lengths = squared_lengths(vectors[..., columns], moments.fold_pairs)
                result[:, some, s] = lengths / variance[:, some]
    return LatentScaling(squares[0], squares[1], moments.firings)


@torch.no_grad()
def decoder_scaling(
    crosscoder: Crosscoder, moments: LatentMoments, latents: Tensor, sources: Tensor
) -> LatentScaling:
    """As Minder et al. define it, for sources that share a basis: `beta` with `v = beta d`.

    d is the decoder of each latent `[L]` in its own source `[L]`, and `beta` minimises
    `sum |z beta d - y|^2` in every source. Squares have the sign of beta. Raises ValueError where
    widths differ.
    """
    if len(set(crosscoder.d_sources)) > 1:
        raise ValueError(
            f"A decoder is a direction in one source; in others only where all have the same width "
            f"and basis, and these have {crosscoder.d_sources}."
        )
    z_squares = left_out(moments.z_squares).clamp_min(1e-30)
    squares = [
        torch.zeros(*z_squares.shape, len(crosscoder.columns), dtype=torch.float64) for _ in "er"
    ]
    for some in _chunks(moments):
        decoders = _decoders(crosscoder, latents[some])
        by_source = torch.stack([decoders[:, columns] for columns in crosscoder.columns])
        own = by_source[sources[some], torch.arange(len(some))]
        left = moments.error_cross[:, some]
        made = moments.cross[:, some] - left
        left = left + moments.z_squares[:, some, None].float() * decoders
        scale = z_squares[:, some] * own.double().square().sum(1)
        for result, vectors in zip(squares, (left, made), strict=True):
            for s, columns in enumerate(crosscoder.columns):
                beta = left_out((vectors[..., columns] * own).sum(2).double()) / scale
                result[:, some, s] = beta * beta.abs()
    return LatentScaling(squares[0], squares[1], moments.firings)


def _chunks(moments: LatentMoments) -> tuple[Tensor, ...]:
    folds, count, width = moments.cross.shape
    return torch.arange(count).split(max(CHUNK_NUMBERS // (folds * width), 1))


def _decoders(crosscoder: Crosscoder, latents: Tensor) -> Tensor:
    """All sources' decoders of latents beside each other, `[l, D]`."""
    chosen = latents.to(crosscoder.device)
    parts = [crosscoder.decoder(s)[chosen] for s in range(len(crosscoder.columns))]
    return torch.cat(parts, 1).float().cpu()
