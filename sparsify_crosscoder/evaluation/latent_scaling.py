"""Latent scaling (Minder et al. 2025): how much of every latent each model has, decoder or not.

An exclusive latent's decoder in the other models is 0 by structure or by training, which does not
prove that they lack what it stands for. They may have it in what is not reconstructed at all
(complete shrinkage), or reconstructed by other latents (latent decoupling).

L latents, S sources, D the sum of their widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..crosscoders import Crosscoder, SparseCode
from ..crosscoders.kernels import column_sums
from ..store.stream import ActivationStream
from .latent_moments import NUM_FOLDS, encoded


@dataclass
class LatentScaling:
    """Sizes of the best fitting vectors per unit of activation, `[L, S]`, normalised space.

    For a latent with activation z the vector v of source s minimises `sum |z v + c - y|^2`. Minder
    et al. scale the latent's decoder; models of different architecture have no decoder in common,
    so the vector is fitted. Its size is that of what two halves of the pairs agree on.
    """

    error: Tensor
    """y is what the crosscoder leaves of the source, and what the latent itself adds to it."""

    reconstruction: Tensor
    """y is what the other latents make of the source."""

    firings: Tensor
    """Pairs on which each latent is active, `[L]`."""

    def ratio(self, source: int, kind: str = "error") -> Tensor:
        """The largest size in any other source as a multiple of that in `source`, `[L]`.

        By `error` near 1: complete shrinkage. Both near 0: the others lack it.
        """
        sizes = self.error if kind == "error" else self.reconstruction
        others = [s for s in range(sizes.shape[1]) if s != source]
        return sizes[:, others].amax(1) / self.error[:, source].clamp_min(1e-30)


@torch.no_grad()
def latent_scaling(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    *,
    num_pairs: int | None = None,
    outlier_multiple: float = 2.0,
) -> LatentScaling:
    """Fit every latent's vectors over a stream's pairs, read as at inference.

    Takes 16 L D bytes.
    """
    width, size = crosscoder.d_in, len(latents)
    sums = [_Sums(size, width) for _ in range(NUM_FOLDS)]
    batches = encoded(crosscoder, stream, latents, num_pairs, outlier_multiple, decode=True)
    for number, (x, code, x_hat) in enumerate(batches):
        sums[number % NUM_FOLDS].update(x, x_hat, code)
    decoders = torch.cat(
        [crosscoder.decoder(s)[latents] for s in range(len(crosscoder.columns))], 1
    )
    left = [one.slopes(one.errors, one.error_sum) + decoders.double().cpu() for one in sums]
    made = [
        one.slopes(one.inputs, one.input_sum) - part for one, part in zip(sums, left, strict=True)
    ]

    def sizes(vectors: list[Tensor]) -> Tensor:
        agreed = (vectors[0] * vectors[1]).split(crosscoder.d_sources, 1)
        return torch.stack([part.sum(1).clamp_min(0).sqrt() for part in agreed], 1)

    firings = torch.stack([one.firings for one in sums]).sum(0)
    return LatentScaling(sizes(left), sizes(made), firings)


class _Sums:
    """What the fits of one fold need."""

    def __init__(self, size: int, width: int):
        self.pairs = 0
        self.errors, self.inputs = torch.zeros(2, size, width)
        self.error_sum, self.input_sum = torch.zeros(2, width, dtype=torch.float64)
        self.z_sum, self.z_squares = torch.zeros(2, size, dtype=torch.float64)
        self.firings = torch.zeros(size, dtype=torch.long)

    def update(self, x: Tensor, x_hat: Tensor, code: SparseCode) -> None:
        self.pairs += len(x)
        error = x - x_hat
        self.errors += column_sums(error, code, code.acts).cpu()
        self.inputs += column_sums(x, code, code.acts).cpu()
        self.error_sum += error.double().sum(0).cpu()
        self.input_sum += x.double().sum(0).cpu()
        indices, acts = code.indices.cpu(), code.acts.double().cpu()
        self.z_sum.index_add_(0, indices, acts)
        self.z_squares.index_add_(0, indices, acts.square())
        self.firings += torch.bincount(indices, minlength=len(self.firings))

    def slopes(self, products: Tensor, total: Tensor) -> Tensor:
        """Change of a target per unit of each latent's activation, `[L, D]`."""
        mean = self.z_sum / self.pairs
        covariance = products / self.pairs - mean.outer(total / self.pairs)
        variance = self.z_squares / self.pairs - mean.square()
        return covariance / variance.clamp_min(1e-30)[:, None]
