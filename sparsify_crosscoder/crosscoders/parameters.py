"""What a crosscoder consists of: its blocks' weights, its normalisation, and views of them.

N pairs, M latents, S sources, D width of one source, d_in = sum of the widths. Everything that
an architecture ties or leaves out is said by its `Partition`; this module treats all alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sparsify import SparseCoder
from torch import Tensor, nn

from ..config import CrosscoderConfig
from . import kernels
from .dense_state import blocks_to_dense, dense_to_blocks
from .float32 import KeepsFloat32
from .kernels.reference import by_column
from .partition import Partition
from .selector import Selector


class BlockEncoder(nn.Module):
    """Encoder weights by block: `weights[b]` is `[M_b, D_b]` over the sources the block reads."""

    def __init__(
        self, weights: list[Tensor], bias: Tensor, partition: Partition, d_sources: Sequence[int]
    ):
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.bias = nn.Parameter(bias)
        self.partition = partition
        self.d_sources = list(d_sources)

    @property
    def weight(self) -> Tensor:
        """The stored weights as one matrix, `[M, d_in]`; zero where a latent may not read."""
        sources = range(len(self.d_sources))
        return torch.cat([self.of_source(s) for s in sources], 1)

    def of_source(self, source: int) -> Tensor:
        """The stored weights on a source's part of what each block reads, `[M, D]`."""
        return by_source(self.weights, source, self.partition, self.d_sources)


def by_source(
    weights: nn.ParameterList,
    source: int,
    partition: Partition,
    d_sources: Sequence[int],
    *,
    tied: bool = False,
) -> Tensor:
    """A source's columns of the blocks' weights, `[M, D]`; zero where a block has none of it.

    If they are `tied`, a tied block has one weight for all sources.
    """
    if not 0 <= source < len(d_sources):
        raise IndexError(f"There are sources 0..{len(d_sources) - 1}, not {source}.")
    parts = []
    for block, weight in zip(partition.blocks, weights, strict=True):
        if source not in block.sources:
            parts.append(weight.new_zeros(len(block), d_sources[source]))
        elif block.tied and tied:
            parts.append(weight)
        else:
            before = sum(d_sources[s] for s in block.sources if s < source)
            parts.append(weight[:, before : before + d_sources[source]])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class CrosscoderParameters(KeepsFloat32, SparseCoder):
    """The weights of a crosscoder, block by block, as matrices and as directions.

    `decoders[b]` is `[M_b, D_b]` over the sources that block b writes, over one of them if it is
    tied. Raw activations are normalised by `mean` [d_in] and `factors` [S]. `median_norms` [S] are
    the raw activations' median norms in the run's first pairs, by which inference tells outliers;
    0 where they are not known.

    Raises ValueError if the configuration does not fit the widths.
    """

    arch: ClassVar[str] = "crosscoder"
    config_class: ClassVar[type[CrosscoderConfig]] = CrosscoderConfig
    float32_buffers = ("mean", "factors", "median_norms")

    def __init__(
        self,
        d_sources: Sequence[int],
        cfg: CrosscoderConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        sources: Sequence[dict[str, Any]] = (),
    ):
        nn.Module.__init__(self)
        self.d_sources = [int(d) for d in d_sources]
        if len(self.d_sources) < 2 or min(self.d_sources) < 1:
            raise ValueError(
                f"A crosscoder needs at least two sources of positive width, got {self.d_sources}."
            )
        if not isinstance(cfg, self.config_class):
            raise ValueError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, "
                f"got {type(cfg).__name__}."
            )
        self.cfg: CrosscoderConfig = cfg
        self.sources = [dict(source) for source in sources]
        self.d_in = sum(self.d_sources)
        self.num_latents = cfg.resolve_num_latents(self.d_sources)
        self.partition = self.make_partition(self.num_latents, self.d_sources, cfg)
        self.gradient_checkpointing = False
        self.selector = Selector(self.partition, device)

        ends = list(itertools.accumulate(self.d_sources, initial=0))
        self.columns = [slice(a, b) for a, b in itertools.pairwise(ends)]

        encoders, decoders = [], []
        for block in self.partition.blocks:
            directions = [
                self._random_directions(len(block), self.d_sources[s], device)
                for s in (block.sources[:1] if block.tied else block.sources)
            ]
            decoders.append(torch.cat(directions, 1).to(dtype))
            encoders.append(torch.cat(directions * (len(block.sources) if block.tied else 1), 1))
        bias = torch.zeros(self.num_latents, device=device, dtype=dtype)
        weights = [encoder.to(dtype).clone() for encoder in encoders]
        self.encoder = BlockEncoder(weights, bias, self.partition, self.d_sources)
        self.decoders = nn.ParameterList(decoders)
        self.b_dec = nn.Parameter(torch.zeros(self.d_in, device=device, dtype=dtype))
        self.W_skip = None

        self.mean: Tensor
        self.factors: Tensor
        self.median_norms: Tensor
        self.register_buffer("mean", torch.zeros(self.d_in, device=device))
        self.register_buffer("factors", torch.ones(len(self.d_sources), device=device))
        self.register_buffer("median_norms", torch.zeros(len(self.d_sources), device=device))
        self.register_state_dict_post_hook(blocks_to_dense)
        self.register_load_state_dict_pre_hook(dense_to_blocks)

    @classmethod
    def make_partition(
        cls, num_latents: int, d_sources: Sequence[int], cfg: CrosscoderConfig
    ) -> Partition:
        """The blocks and groups of this architecture; what a subclass overrides."""
        everything = tuple(range(len(d_sources)))
        return Partition.build(len(d_sources), [("shared", num_latents, everything)])

    def _random_directions(self, rows: int, width: int, device: str | torch.device) -> Tensor:
        directions = F.normalize(torch.randn(rows, width, device=device), dim=1)
        return directions * self.cfg.decoder_init_norm

    @property
    def threshold(self) -> Tensor:
        """Learned inference thresholds, `[G]`; NaN while a group has learned none."""
        return self.selector.threshold

    def fitted(self) -> dict[str, Any]:
        """What was decided before training, for `cfg.json` and the run's summary."""
        return {}

    # Parameters as matrices

    @property
    def device(self) -> torch.device:
        return self.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.b_dec.dtype

    @property
    def W_dec(self) -> Tensor:
        """Decoders of all sources side by side, `[M, d_in]`; zero where a latent may not write."""
        return torch.cat([self.decoder(s) for s in range(len(self.d_sources))], 1)

    def encoder_weight(self, source: int) -> Tensor:
        """Encoder weights that read one source, `[M, D]`; zero where a latent may not read.

        Pre-activations are `b_enc` plus the sum over sources of `x_s @ encoder_weight(s).T` for
        normalised x, whatever `reduce` is: with `mean` these are the stored weights divided by the
        number of sources that a latent may read.
        """
        weight = self.block_weight(source)
        if self.cfg.reduce == "sum":
            return weight
        rows = weight.split([len(block) for block in self.partition.blocks])
        pairs = zip(rows, self.partition.blocks, strict=True)
        return torch.cat([part / len(block.sources) for part, block in pairs])

    def block_weight(self, source: int) -> Tensor:
        """Stored encoder weights on a source's part of what each block reads, `[M, D]`."""
        return self.encoder.of_source(source)

    def decoder(self, source: int) -> Tensor:
        """Decoder vectors of one source in normalised space, `[M, D]`.

        A vector in the model's own space is `decoder(s)[i] / factors[s]`.
        """
        return by_source(self.decoders, source, self.partition, self.d_sources, tied=True)

    @torch.no_grad()
    def decoder_norms(self) -> Tensor:
        """L2 norm of every latent's decoder in every source, `[M, S]`."""
        norms = self.b_dec.new_zeros(self.num_latents, len(self.d_sources))
        for block, weight in zip(self.partition.blocks, self.decoders, strict=True):
            rows = norms[block.start : block.stop]
            if block.tied:
                rows[:, list(block.sources)] = weight.norm(dim=1, keepdim=True)
            else:
                widths = [self.d_sources[s] for s in block.sources]
                for s, part in zip(block.sources, weight.split(widths, 1), strict=True):
                    rows[:, s] = part.norm(dim=1)
        return norms

    def relative_decoder_norm(self, source: int = 0) -> Tensor:
        """Share of one source in each latent's decoder norms (equation 1), `[M]` in [0, 1].

        1 means exclusive to `source`, 0 absent from it. A latent without any decoder has 1 / S.
        """
        norms = self.decoder_norms()
        return (norms[:, source] / norms.sum(1)).nan_to_num(1 / len(self.d_sources))

    @torch.no_grad()
    def score_norms(self) -> Tensor | None:
        """What an activation is multiplied by to be its score, `[M]`; None if it is that itself."""
        if self.cfg.rank_by == "activation":
            return None
        parts = []
        for block, weight in zip(self.partition.blocks, self.decoders, strict=True):
            if block.tied:
                norms = weight.norm(dim=1)
                parts.append(norms if self.cfg.rank_by == "mean" else norms * len(block.sources))
                continue
            widths = [self.d_sources[s] for s in block.sources]
            norms = kernels.norms_by_source(weight, widths).sum(0)
            parts.append(norms / len(block.sources) if self.cfg.rank_by == "mean" else norms)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    # Normalisation

    @torch.no_grad()
    def set_normalization(self, means: Sequence[Tensor], factors: Tensor) -> None:
        """Store what turns raw activations into normalised ones: `(x_s - means[s]) * factors[s]`.

        `means` are one `[d_s]` tensor per source, `factors` is `[S]`.
        """
        self.mean.copy_(torch.cat([m.to(self.mean) for m in means]))
        self.factors.copy_(factors)

    def normalize(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Raw activations to normalised ones, `[..., d_in]` in the crosscoder's dtype."""
        parts = [part.to(self.device) for part in ([x] if isinstance(x, Tensor) else x)]
        width = sum(part.shape[-1] for part in parts)
        if width != self.d_in:
            raise ValueError(
                f"Expected activations of width {self.d_in} = sum of {self.d_sources}, got {width}."
            )
        return kernels.normalized(parts, self.mean, self.factors, self.d_sources).to(self.dtype)

    def denormalize(self, x: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        return (x / by_column(self.factors, self.d_sources) + self.mean).to(self.dtype)

    def block_inputs(self, x: Tensor) -> list[Tensor]:
        """What every block reads of normalised `x` [N, d_in], one `[N, D_b]` per block.

        With `reduce` as the mean, divided by the number of sources that the block may read, so that
        exclusive latents are not halved; the weights, of which there are more, are not copied.
        """
        inputs = [
            x[:, self.columns[block.sources[0]].start : self.columns[block.sources[-1]].stop]
            for block in self.partition.blocks
        ]
        if self.cfg.reduce == "sum":
            return inputs
        blocks = zip(inputs, self.partition.blocks, strict=True)
        return [x / len(b.sources) if len(b.sources) > 1 else x for x, b in blocks]
