"""The residual DFC: exclusive latents see only what is not predictable from the other sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import Architecture
from ..world import ALONE, World
from .crosscoder import FirstPairs
from .dfc import DedicatedFeatureCrosscoder, DFCConfig

# Directions with less than this share of a source's mean variance are not made any larger.
SMALLEST_VARIANCE = 0.005
# Of the search for directions to begin at: starts for each and in all, the share of the pairs that
# each step looks at, and the cosine of two that are the same. Wide steps find the way from a single
# pair, the last one says what stands out.
STARTS_EACH, LEAST_STARTS, ALIKE = 4, 1_024, 0.7
SHARES = (0.05, 0.05, 0.05, 0.01)


@dataclass
class RDFCConfig(DFCConfig):
    """Residual DFC: exclusive latents read what the other sources do not predict of their own."""

    rank_by: Literal["score", "mean", "activation"] = "mean"
    """As for all architectures. In one budget with the shared latents, as `joint` has it, exclusive
    ones then need as much in their source as a shared one in each: where there is no difference,
    they are silent, and where there is one, they are not outbid."""

    selection: Literal["grouped", "joint"] = "joint"
    """As for a DFC."""

    map_pairs: int = 65_536
    """Pairs from which the linear maps between the sources are fitted before training."""

    map_ridge: float = 1e-3
    """Ridge penalty of these maps, as a multiple of the mean variance of what they read."""

    def __post_init__(self):
        super().__post_init__()
        if self.map_pairs < 1 or self.map_ridge <= 0:
            raise ValueError(
                f"map_pairs and map_ridge must be positive, got {self.map_pairs} and "
                f"{self.map_ridge}."
            )


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
    gain from it, where a plain DFC's copies what the shared block already explains. What is left is
    whitened: a difference may be small beside a few large directions, in which a latent would have
    to tell it from noise. Shared latents and all decoders are those of a DFC.

    `maps` [d_in, d_in] predict normalised activations, `x @ maps`; a source's part of it reads the
    other sources only. `whitening_{s}` [D, D] are symmetric. Until `fit_maps` they are 0 and
    identities, which makes this a DFC.
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
        for s, width in enumerate(self.d_sources):
            identity = torch.eye(width, device=device, dtype=dtype)
            self.register_buffer(f"whitening_{s}", identity)

    def whitening(self, source: int) -> Tensor:
        """What whitens the unpredicted part of a source, `[D, D]`."""
        return getattr(self, f"whitening_{source}")

    def prepare(self, pairs: FirstPairs, world: World = ALONE) -> None:
        """Fit the maps between the sources, and choose where the exclusive latents begin."""
        self.fit_maps(pairs(self.cfg.map_pairs), world)
        self.start_from(torch.cat([world.gather_rows(batch) for batch in pairs(None)]))

    @torch.no_grad()
    def fit_maps(self, batches: Iterable[Tensor], world: World = ALONE) -> None:
        """Fit maps and whitening in one pass over normalised `[n, d_in]` batches.

        `batches` are this rank's part. Raises ValueError if there are fewer than two pairs.
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
        for s, columns in enumerate(self.columns):
            others = torch.ones(self.d_in, dtype=torch.bool, device=self.device)
            others[columns] = False
            across = covariance[others, columns]
            solved = ridge_regression(covariance[others][:, others], across, self.cfg.map_ridge)
            self.maps[others, columns] = solved.to(self.maps.dtype)
            left = covariance[columns, columns] - across.T @ solved
            least = SMALLEST_VARIANCE * covariance[columns, columns].diagonal().mean()
            self.whitening(s).copy_(inverse_root((left + left.T) / 2, least))

    @torch.no_grad()
    def start_from(self, examples: Tensor) -> None:
        """Let the exclusive latents begin at directions in which some pairs stand out.

        `examples` are normalised `[n, d_in]`. No random direction is near a rare and small
        difference, and a latent that begins far from it never finds it. Pre-activations vary as
        much as those of shared latents do.
        """
        norm = self.cfg.decoder_init_norm
        blocks = zip(self.partition.blocks, self.encoder.weights, self.decoders, strict=True)
        for block, encoder, decoder in blocks:
            source, *others = block.sources
            if others:
                continue
            left = self.unpredicted(examples, source)
            left = left - left.mean(0)
            seen = left @ self.whitening(source)
            directions, strength = standing_out(seen, len(block))
            encoder.copy_(directions * norm * len(self.d_sources) ** 0.5)
            decoder.copy_(F.normalize(strength.T @ left, dim=1) * norm)

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
                source = block.sources[0]
                inputs[b] = self.unpredicted(x, source) @ self.whitening(source)
        return inputs

    def encoder_weight(self, source: int) -> Tensor:
        """Encoder weights that read one source, `[M, D]`, those through the maps among them.

        Pre-activations are `b_enc` plus the sum over sources of `x_s @ encoder_weight(s).T` for
        normalised x, whitening, maps and `reduce` included.
        """
        weight = super().encoder_weight(source).clone()
        columns = self.columns[source]
        for block, own in zip(self.partition.blocks, self.encoder.weights, strict=True):
            if len(block.sources) == 1:
                reads = own @ self.whitening(block.sources[0])
                if block.sources[0] != source:
                    reads = -reads @ self.maps[columns, self.columns[block.sources[0]]].T
                weight[block.start : block.stop] = reads
        return weight


def inverse_root(covariance: Tensor, least: Tensor) -> Tensor:
    """The symmetric matrix `[D, D]` that whitens, variances below `least` taken for `least`."""
    variances, directions = torch.linalg.eigh(covariance)
    scaled = directions * variances.clamp_min(least.clamp_min(1e-30)).rsqrt()
    return scaled @ directions.T


def standing_out(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Directions in which a hundredth of white, centred x `[n, D]` lies far out.

    Returns `count` unit vectors `[count, D]`, those with the farthest first, and how far out the
    hundredth is along them, `[n, count]`, 0 for all other pairs. The search begins at single pairs,
    several for each direction, and moves each to the mean of what is farthest along it, weighted as
    by a latent in training.
    """
    found = F.normalize(x[: max(STARTS_EACH * count, LEAST_STARTS)], dim=1)

    def far_out(directions: Tensor, share: float) -> Tensor:
        along = x @ directions.T
        number = min(max(int(share * len(x)), 1) + 1, len(x))
        return along * (along > along.topk(number, dim=0).values[-1])

    for share in SHARES:
        found = F.normalize(far_out(found, share).T @ x, dim=1)
    order = far_out(found, SHARES[-1]).sum(0).argsort(descending=True)
    kept = [int(order[0])]
    rest = []
    for i in order[1:].tolist():
        alike = (found[kept] @ found[i]).max() > ALIKE
        (rest if alike or len(kept) == count else kept).append(i)
    chosen = (kept + rest * count)[:count]
    return found[chosen], far_out(found[chosen], SHARES[-1])


RDFC = Architecture(
    "rdfc",
    RDFCConfig,
    ResidualDedicatedFeatureCrosscoder,
    description="residual DFC: exclusive latents read what the other models do not predict",
)
