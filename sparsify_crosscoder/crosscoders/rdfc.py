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
from . import sparse_ops
from .codes import SparseCode
from .crosscoder import FirstPairs
from .dfc import DedicatedFeatureCrosscoder, DFCConfig
from .float32 import full_precision
from .outputs import Batch, Terms
from .revival import DeadLatents
from .shared_basis import LEAST_R2, smallest_r2
from .starts import standing_out, written_by

# Directions with less than this share of a source's mean variance are not made any larger.
SMALLEST_VARIANCE = 0.005


@dataclass
class RDFCConfig(DFCConfig):
    """Residual DFC: exclusive latents read what the other sources do not predict of their own."""

    rank_by: Literal["score", "mean", "activation"] = "mean"
    """As for all architectures. In one budget with the shared latents, as `joint` has it, exclusive
    ones then need as much in their source as a shared one in each: where there is no difference,
    they are silent, and where there is one, they are not outbid."""

    selection: Literal["grouped", "joint"] = "joint"
    """As for a DFC."""

    predict_by: Literal["auto", "map", "identity"] = "auto"
    """What predicts a source from the others: a linear `map`, or the `identity`, so that exclusive
    latents read the difference of the activations as they are. A map predicts what a model does
    with what the other sees as well. `auto` takes the identity where sources share a basis."""

    map_pairs: int = 65_536
    """Pairs from which the linear maps between the sources are fitted before training."""

    map_ridge: float = 1e-3
    """Ridge penalty of these maps, as a multiple of the mean variance of what they read."""

    difference_weight: float = 0.0
    """Weight of a loss of the exclusive latents' own, beside that of the reconstruction: the error
    of what the others do not predict, whitened. It makes them a dictionary of the difference, which
    then need not compete with all else in the models; `--selection grouped` gives it a budget of
    its own."""

    def __post_init__(self):
        super().__post_init__()
        if self.difference_weight < 0:
            raise ValueError(
                f"difference_weight must not be negative, got {self.difference_weight}."
            )
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

    Where the sources share a basis, the prediction is the others' activation as it is (their mean).

    A concept that all sources have is mostly predicted away, so an exclusive latent has little to
    gain from it, where a plain DFC's copies what the shared block already explains. What is left is
    whitened: a difference may be small beside a few large directions, in which a latent would have
    to tell it from noise. Shared latents and all decoders are those of a DFC.

    `maps` [d_in, d_in] predict normalised activations, `x @ maps`; a source's part of it reads the
    other sources only. `whitening_{s}` [D, D] are symmetric. Until `fit_maps` they are 0 and
    identities, which makes this a DFC.

    Raises ValueError if the configuration does not fit the widths.
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
        self.may_share_basis = len(set(self.d_sources)) == 1
        if cfg.predict_by == "identity" and not self.may_share_basis:
            raise ValueError(
                f"Sources of widths {self.d_sources} share no basis, which --predict_by identity "
                f"takes for granted; use --predict_by map."
            )
        self.predicts_by_identity = False
        self.start_seed = int(torch.randint(2**31, ()))
        self.register_load_state_dict_post_hook(lambda module, _: module._recognise_identity())

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
        self.maps.copy_(self._chosen_maps(covariance))
        self._recognise_identity()
        for s, left in enumerate(self._unpredicted_covariances(self.maps, covariance)):
            least = SMALLEST_VARIANCE * covariance.diagonal()[self.columns[s]].mean()
            self.whitening(s).copy_(inverse_root(left, least))

    def _chosen_maps(self, covariance: Tensor) -> Tensor:
        """The maps to predict by, `[d_in, d_in]`, from the covariance of all sources."""
        if self.may_share_basis and self.cfg.predict_by != "map":
            maps = self._identity_maps()
            if self.cfg.predict_by == "identity":
                return maps
            left = self._unpredicted_covariances(maps, covariance)
            units = self.factors.double().pow(2)
            variances = [covariance.diagonal()[c] / units[s] for s, c in enumerate(self.columns)]
            rests = [rest.diagonal() / units[s] for s, rest in enumerate(left)]
            if smallest_r2(variances, rests) >= LEAST_R2:
                return maps
        maps = torch.zeros_like(covariance)
        for columns in self.columns:
            others = torch.ones(self.d_in, dtype=torch.bool, device=self.device)
            others[columns] = False
            read, written = covariance[others][:, others], covariance[others, columns]
            maps[others, columns] = ridge_regression(read, written, self.cfg.map_ridge)
        return maps

    def _identity_maps(self) -> Tensor:
        """Maps that predict a source by the mean of the others, `[d_in, d_in]`."""
        maps = torch.zeros_like(self.maps)
        for s, columns in enumerate(self.columns):
            for t, others in enumerate(self.columns):
                if t != s:
                    maps[others, columns] = self._as_it_is(t, s) * torch.eye(
                        self.d_sources[s], device=self.device, dtype=self.dtype
                    )
        return maps

    def _as_it_is(self, read: int, predicted: int) -> Tensor:
        """What normalised activations of one source are in the prediction of another."""
        scale = self.factors[predicted] / self.factors[read] / (len(self.d_sources) - 1)
        return scale.to(self.dtype)

    def _unpredicted_covariances(self, maps: Tensor, covariance: Tensor) -> list[Tensor]:
        """Covariance `[D, D]` of what maps leave of each source."""
        found = []
        for columns in self.columns:
            weights = -maps[:, columns].double()
            weights[columns].diagonal().add_(1)
            left = weights.T @ covariance @ weights
            found.append((left + left.T) / 2)
        return found

    @torch.no_grad()
    def _recognise_identity(self) -> None:
        self.predicts_by_identity = self.may_share_basis and torch.equal(
            self.maps, self._identity_maps()
        )

    def fitted(self) -> dict[str, Any]:
        if not self.maps.any():
            return {}
        return {"predicted_by": "identity" if self.predicts_by_identity else "map"}

    @torch.no_grad()
    def start_from(self, examples: Tensor) -> None:
        """Let the exclusive latents begin at directions in which some pairs stand out.

        `examples` are normalised `[n, d_in]`. Where too few stand out, the other latents keep their
        random directions. Pre-activations vary as much as those of shared latents do.
        """
        generator = torch.Generator().manual_seed(self.start_seed)
        norm = self.cfg.decoder_init_norm
        blocks = zip(self.partition.blocks, self.encoder.weights, self.decoders, strict=True)
        for block, encoder, decoder in blocks:
            source, *others = block.sources
            if others:
                continue
            left = self.unpredicted(examples, source)
            left = left - left.mean(0)
            seen = left @ self.whitening(source)
            directions = standing_out(seen, len(block), generator)
            encoder.mul_(len(self.d_sources) ** 0.5)
            encoder[: len(directions)] = directions * norm * len(self.d_sources) ** 0.5
            written = F.normalize(written_by(seen, directions, left), dim=1)
            decoder[: len(directions)] = written * norm

    def unpredicted(self, x: Tensor, source: int) -> Tensor:
        """What the other sources do not predict of one source of normalised x, `[N, D]`."""
        columns = self.columns[source]
        left = x[:, columns]
        if self.predicts_by_identity:
            # As a product with the maps it would cost one, and be rounded where TF32 is on.
            for t, others in enumerate(self.columns):
                if t != source:
                    left = left - self._as_it_is(t, source) * x[:, others]
            return left
        before, after = slice(0, columns.start), slice(columns.stop, self.d_in)
        maps = self.maps[:, columns]
        return left - x[:, before] @ maps[before] - x[:, after] @ maps[after]

    def block_inputs(self, x: Tensor) -> list[Tensor]:
        inputs = super().block_inputs(x)
        for b, block in enumerate(self.partition.blocks):
            if len(block.sources) == 1:
                source = block.sources[0]
                inputs[b] = self.unpredicted(x, source) @ self.whitening(source)
        return inputs

    def _terms(
        self,
        target: Tensor,
        codes: list[SparseCode],
        dead: DeadLatents | None,
        total_variance: Tensor,
        batch: Batch,
    ) -> Terms:
        terms = super()._terms(target, codes, dead, total_variance, batch)
        if not self.cfg.difference_weight:
            return terms
        num_pairs = len(target) if batch.num_pairs is None else batch.num_pairs
        with full_precision(target.device):
            squares = self._difference_errors(target, codes)
        # No whitened dimension varies by more than 1.
        weight = self.cfg.difference_weight / (self.d_in * num_pairs)
        return terms._replace(loss=terms.loss + weight * squares)

    def _difference_errors(self, target: Tensor, codes: list[SparseCode]) -> Tensor:
        """Squared errors of the exclusive latents in what they read of normalised target."""
        total = target.new_zeros(())
        centred = target - self.b_dec.detach()
        for block, weight, code in zip(self.partition.blocks, self.decoders, codes, strict=True):
            if len(block.sources) == 1:
                source = block.sources[0]
                decoded = sparse_ops.decode(code, weight)[: len(target)]
                left = self.unpredicted(centred, source) - decoded
                total = total + (left @ self.whitening(source)).pow(2).sum()
        return total

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


RDFC = Architecture(
    "rdfc",
    RDFCConfig,
    ResidualDedicatedFeatureCrosscoder,
    description="residual DFC: exclusive latents read what the other models do not predict",
)
