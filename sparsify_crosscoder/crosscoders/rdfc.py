"""The residual DFC: exclusive latents see only what is not predictable from the other sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import RDFCConfig
from ..world import ALONE, World
from .dfc import DedicatedFeatureCrosscoder

MAX_BOOST = 4.0  # what is nearly all predicted stays quiet


def ridge_regression(read: Tensor, written: Tensor, ridge: float) -> Tensor:
    """Weights `[D, W]` that predict W numbers linearly from D.

    `read` [D, D] is the covariance of what is read, `written` [D, W] that with what is predicted.
    The penalty is `ridge` times the mean variance of what is read.
    """
    penalised = read.clone()
    penalised.diagonal().add_(ridge * read.diagonal().mean())
    return torch.linalg.solve(penalised, written)


class ResidualDedicatedFeatureCrosscoder(DedicatedFeatureCrosscoder):
    """DFC whose exclusive blocks read `x_s` minus its linear prediction from the other sources.

    A concept that all sources have is mostly predicted away, so an exclusive latent has little to
    gain from it, where a plain DFC's copies what the shared block already explains. Shared latents
    and all decoders are those of a DFC.

    `maps` [d_in, d_in] predict normalised activations, `x @ maps`; a source's part of it reads the
    other sources only. They are 0, which makes this a DFC, until `fit_maps`.
    """

    arch = "rdfc"
    config_class = RDFCConfig
    cfg: RDFCConfig

    def __init__(
        self,
        d_sources: Sequence[int],
        cfg: RDFCConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        sources: Sequence[dict[str, Any]] = (),
    ):
        super().__init__(d_sources, cfg, device, dtype, sources=sources)
        self.maps: Tensor
        self.register_buffer("maps", torch.zeros(self.d_in, self.d_in, device=device, dtype=dtype))

    @torch.no_grad()
    def fit_maps(self, batches: Iterable[Tensor], world: World = ALONE) -> None:
        """Fit the maps by ridge regression in one pass over normalised `[n, d_in]` batches.

        Once, before training: what exclusive latents read loses variance, for which their encoders
        are made larger. `batches` are this rank's part. Raises ValueError if there are fewer than
        two pairs.
        """
        total = torch.zeros(self.d_in, dtype=torch.float64, device=self.device)
        products = torch.zeros(self.d_in, self.d_in, dtype=torch.float64, device=self.device)
        count = 0
        for x in batches:
            x = x.double()
            total += x.sum(0)
            products += x.T @ x
            count += len(x)
        count = world.total(count, self.device)
        if count < 2:
            raise ValueError("The maps between sources need two pairs at least.")
        mean = world.sum(total) / count
        covariance = world.sum(products) / count - mean.outer(mean)
        self.maps.zero_()
        for columns in self.columns:
            others = torch.ones(self.d_in, dtype=torch.bool, device=self.device)
            others[columns] = False
            solved = ridge_regression(
                covariance[others][:, others], covariance[others, columns], self.cfg.map_ridge
            )
            self.maps[others, columns] = solved.to(self.maps.dtype)
        self._even_out(covariance)

    def _even_out(self, covariance: Tensor) -> None:
        """Scale the exclusive encoders so that they are as active as shared ones at the start.

        What they read has less variance, from one source only; without this, latents that share a
        budget with shared ones would never fire. `covariance` [d_in, d_in] is that of the input.
        """
        seen = torch.eye(self.d_in, dtype=covariance.dtype, device=self.device) - self.maps.double()
        unpredicted = ((covariance @ seen) * seen).sum(0)
        variances = [covariance.diagonal()[c].mean() for c in self.columns]
        for block, weight in zip(self.partition.blocks, self.encoder.weights, strict=True):
            if len(block.sources) == 1:
                own = unpredicted[self.columns[block.sources[0]]].mean()
                ratio = (torch.stack(variances).sum() / own.clamp_min(1e-30)).sqrt()
                weight.mul_(ratio.clamp(1, MAX_BOOST))

    def unpredicted(self, x: Tensor, source: int) -> Tensor:
        """What the other sources do not predict of one source of normalised x, `[N, D]`."""
        columns = self.columns[source]
        before, after = slice(0, columns.start), slice(columns.stop, self.d_in)
        maps = self.maps[:, columns]
        return x[:, columns] - x[:, before] @ maps[before] - x[:, after] @ maps[after]

    def block_inputs(self, x: Tensor) -> list[Tensor]:
        inputs = super().block_inputs(x)
        for b, block in enumerate(self.partition.blocks):
            if len(block.sources) == 1:
                inputs[b] = self.unpredicted(x, block.sources[0])
        return inputs

    def encoder_weight(self, source: int) -> Tensor:
        """Encoder weights that read one source, `[M, D]`, those through the maps among them."""
        weight = self.block_weight(source).clone()
        columns = self.columns[source]
        for block, own in zip(self.partition.blocks, self.encoder.weights, strict=True):
            if len(block.sources) == 1 and block.sources[0] != source:
                read = self.maps[columns, self.columns[block.sources[0]]]
                weight[block.start : block.stop] = -own @ read.T
        return weight
