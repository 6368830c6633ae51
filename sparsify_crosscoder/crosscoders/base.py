"""The crosscoder: a SparseCoder over the concatenated activations of several models.

N pairs, M latents, S sources, D width of one source, d_in = sum of the widths. Everything that
an architecture ties or leaves out is said by its `Partition`; this module treats all alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from sparsify import SparseCoder
from sparsify.fused_encoder import EncoderOutput
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

from ..config import CrosscoderConfig
from ..hardware import has_native_bfloat16
from ..world import ALONE, World
from . import checkpoints, cpu_kernels, sparse_ops
from .batch_topk import kth_largest
from .partition import Partition
from .preactivations import ExactPreactivations, screened
from .selection import (
    NUM_LEVELS,
    Entries,
    entries_reaching,
    largest_entries,
    largest_entries_per_row,
    lowered,
    sampled_level,
    strongest_per_row,
)
from .sparse_ops import SparseCode

FP32_BUFFERS = ("mean", "factors", "threshold", "median_norms")


@dataclass(frozen=True)
class Selection:
    """What BatchTopK kept: one code per block, and the smallest score kept in each group `[G]`.

    Where dead latents were asked for, a code has the N pairs twice: first what is active in them,
    then the strongest dead latents. So both share one gradient of each matrix. `num_active` are
    the entries of each block's first part.
    """

    codes: list[SparseCode]
    cuts: Tensor
    num_active: list[int]

    def active(self, num_pairs: int) -> list[SparseCode]:
        """The codes without the dead latents."""
        return [
            code.first(num_pairs, n) for code, n in zip(self.codes, self.num_active, strict=True)
        ]


class _OutputFields(NamedTuple):
    sae_out: Tensor
    latent_acts: Tensor
    latent_indices: Tensor
    fvu: Tensor
    auxk_loss: Tensor
    multi_topk_fvu: Tensor
    loss: Tensor
    code: SparseCode
    errors: Tensor
    cuts: Tensor


class CrosscoderOutput(_OutputFields, ForwardOutput):  # pyright: ignore[reportGeneralTypeIssues]
    """sparsify's ForwardOutput, with the loss to train on and the sparse code behind its fields.

    `sae_out` [N, d_in] is in the space of the input; `fvu` and `auxk_loss` are measured on
    normalised activations. `errors` [S] are the sums of squared errors of each source, `cuts` [G]
    the smallest score that each group kept. A named tuple of ten fields, all of which copies,
    `_replace` and torch's pytrees (so DDP) keep.
    """

    __slots__ = ()


def _code_from(parts: Iterable[Any], shape: Any) -> SparseCode:
    acts, indices, rows = parts
    return SparseCode(acts, indices, rows, shape)


register_pytree_node(
    SparseCode, lambda code: ([code.acts, code.indices, code.rows], code.shape), _code_from
)


class BlockEncoder(nn.Module):
    """Encoder weights by block: `weights[b]` is `[M_b, D_b]` over the sources the block reads."""

    def __init__(self, weights: list[Tensor], bias: Tensor):
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.bias = nn.Parameter(bias)


class Crosscoder(SparseCoder):
    """Standard crosscoder: every latent reads and writes every source (section 2.1).

    Args:
        d_sources: width of each source.
        cfg: configuration of the architecture.
        sources: what each source is, for example `{"name": ..., "hookpoint": ...}`; kept in
            `cfg.json`.

    Inputs `x` are raw activations: one `[..., d_in]` tensor, or a list of one `[..., d_s]` tensor
    per source. They are normalised inside by the stored `mean` [d_in] and `factors` [S].
    `median_norms` [S] are the raw activations' median norms in the run's first pairs, by which
    inference tells outliers; 0 where they are not known.

    In training mode the batch decides what is active (BatchTopK); in evaluation mode a learned
    threshold does, pair by pair, or the k largest scores of each pair while none is learned.

    Raises ValueError if the configuration does not fit the widths.
    """

    arch: ClassVar[str] = "crosscoder"
    config_class: ClassVar[type[CrosscoderConfig]] = CrosscoderConfig

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
        self._levels: dict[int, Tensor] = {}  # smallest score each group kept in the last step

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
        self.encoder = BlockEncoder([e.to(dtype).clone() for e in encoders], bias)
        self.decoders = nn.ParameterList(decoders)
        self.b_dec = nn.Parameter(torch.zeros(self.d_in, device=device, dtype=dtype))
        self.W_skip = None

        self.mean: Tensor
        self.factors: Tensor
        self.threshold: Tensor
        self.median_norms: Tensor
        self.register_buffer("mean", torch.zeros(self.d_in, device=device))
        self.register_buffer("factors", torch.ones(len(self.d_sources), device=device))
        self.register_buffer("median_norms", torch.zeros(len(self.d_sources), device=device))
        groups = len(self.partition.groups)
        self.register_buffer("threshold", torch.full((groups,), torch.nan, device=device))
        self.register_state_dict_post_hook(checkpoints.blocks_to_dense)
        self.register_load_state_dict_pre_hook(checkpoints.dense_to_blocks)

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

    def _apply(self, fn, recurse=True):
        kept = {name: self._buffers[name] for name in FP32_BUFFERS}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

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
        return torch.cat([self._reduced(part, block) for part, block in pairs])

    def block_weight(self, source: int) -> Tensor:
        """Stored encoder weights on a source's part of what each block reads, `[M, D]`."""
        return self._by_source(self.encoder.weights, source, tied=False)

    def decoder(self, source: int) -> Tensor:
        """Decoder vectors of one source in normalised space, `[M, D]`.

        A vector in the model's own space is `decoder(s)[i] / factors[s]`.
        """
        return self._by_source(self.decoders, source, tied=True)

    def _by_source(self, weights: nn.ParameterList, source: int, *, tied: bool) -> Tensor:
        if not 0 <= source < len(self.d_sources):
            raise IndexError(f"There are sources 0..{len(self.d_sources) - 1}, not {source}.")
        parts = []
        for block, weight in zip(self.partition.blocks, weights, strict=True):
            if source not in block.sources:
                parts.append(weight.new_zeros(len(block), self.d_sources[source]))
            elif block.tied and tied:
                parts.append(weight)
            else:
                before = sum(self.d_sources[s] for s in block.sources if s < source)
                parts.append(weight[:, before : before + self.d_sources[source]])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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

    # Normalisation

    @torch.no_grad()
    def set_normalization(self, means: Sequence[Tensor], factors: Tensor) -> None:
        """Store what turns raw activations into normalised ones: `(x_s - means[s]) * factors[s]`.

        `means` are one `[d_s]` tensor per source, `factors` is `[S]`.
        """
        self.mean.copy_(torch.cat([m.to(self.mean) for m in means]))
        self.factors.copy_(factors)

    def _scales(self) -> Tensor:
        scales = zip(self.factors, self.d_sources, strict=True)
        return torch.cat([factor.expand(width) for factor, width in scales])

    def normalize(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Raw activations to normalised ones, `[..., d_in]` in the crosscoder's dtype."""
        if not isinstance(x, Tensor):
            parts = [part.to(self.device) for part in x]
            if self.dtype == torch.float32 and cpu_kernels.serve_parts(parts, self.d_sources):
                return cpu_kernels.normalized(parts, self.mean, self.factors)
            x = torch.cat(parts, -1)
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"Expected activations of width {self.d_in} = sum of {self.d_sources}, "
                f"got {x.shape[-1]}."
            )
        # float64 input keeps its precision: bfloat16 is widened by the fp32 buffers.
        return (x.to(self.device) - self.mean).mul_(self._scales()).to(self.dtype)

    def denormalize(self, x: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        return (x / self._scales() + self.mean).to(self.dtype)

    # Encoding

    def block_inputs(self, x: Tensor) -> list[Tensor]:
        """What every block reads of normalised `x` [N, d_in], one `[N, D_b]` per block."""
        return [
            x[:, self.columns[block.sources[0]].start : self.columns[block.sources[-1]].stop]
            for block in self.partition.blocks
        ]

    def _dense_acts(self, x: Tensor) -> Tensor:
        """relu of all pre-activations, `[N, M]`, without a gradient."""
        acts = torch.empty(len(x), self.num_latents, device=x.device, dtype=self.dtype)
        weights, inputs = self.encoder.weights, self.block_inputs(x)
        for block, weight, x_block in zip(self.partition.blocks, weights, inputs, strict=True):
            bias = self.encoder.bias[block.start : block.stop]
            acts[:, block.start : block.stop] = F.linear(
                x_block, self._reduced(weight, block), bias
            )
        return acts.relu_()

    def _reduced(self, weight: Tensor, block: Any) -> Tensor:
        # The mean over the sources that the latent may read, so that exclusive ones are not halved.
        return weight / len(block.sources) if self.cfg.reduce == "mean" else weight

    def _scores(self, acts: Tensor, norms: Tensor | None) -> Tensor:
        return acts if norms is None else acts * norms

    @torch.no_grad()
    def _score_norms(self) -> Tensor | None:
        if self.cfg.rank_by == "activation":
            return None
        parts = []
        for block, weight in zip(self.partition.blocks, self.decoders, strict=True):
            if block.tied:
                norms = weight.norm(dim=1)
                parts.append(norms if self.cfg.rank_by == "mean" else norms * len(block.sources))
                continue
            widths = [self.d_sources[s] for s in block.sources]
            norms = sparse_ops.norms_by_source(weight, widths).sum(0)
            parts.append(norms / len(block.sources) if self.cfg.rank_by == "mean" else norms)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def budgets(self, num_pairs: int) -> list[int]:
        """Entries that each group selects from `num_pairs` pairs."""
        return [round(g.share * self.cfg.k * num_pairs) for g in self.partition.groups]

    @property
    def screen_dtype(self) -> torch.dtype | None:
        """Precision in which entries are screened; None computes all of them exactly."""
        if self.cfg.screening == "auto":
            fast = self.dtype == torch.float32 and has_native_bfloat16(self.device)
            return torch.bfloat16 if fast else None
        return torch.bfloat16 if self.cfg.screening == "bfloat16" else None

    @screen_dtype.setter
    def screen_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"Entries are screened in bfloat16 or not at all (None): {dtype}.")
        self.cfg.screening = "exact" if dtype is None else "bfloat16"

    def _preactivations(
        self,
        inputs: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        exact: bool = False,
        kept: bool = False,
    ) -> list[Any]:
        """What every block makes of its input, without a gradient; `kept` for several looks."""
        form = ExactPreactivations if exact or self.screen_dtype is None else screened
        bias = self.encoder.bias if bias is None else bias
        blocks = zip(self.partition.blocks, self.encoder.weights, inputs, strict=True)
        return [
            form(x, self._reduced(weight, block), bias[block.start : block.stop], kept)
            for block, weight, x in blocks
        ]

    def find_cuts(self, chunks: Sequence[Tensor], world: World = ALONE) -> Tensor:
        """The smallest score that each group keeps of a batch given in chunks, `[G]`.

        `chunks` are normalised `[n, d_in]` pieces of this rank's part of the batch.
        """
        with torch.no_grad(), _without_autocast(self.device):
            return self._find_cuts(chunks, world)

    def _find_cuts(self, chunks: Sequence[Tensor], world: World) -> Tensor:
        norms, groups = self._score_norms(), self.partition.groups
        total = world.total(sum(map(len, chunks)), self.device)
        budgets = self.budgets(total)
        cuts = [self.b_dec.new_full((), torch.inf) for _ in groups]
        missing = [g for g in range(len(groups)) if budgets[g]]
        levels: dict[int, Tensor] = {}
        for attempt in range(NUM_LEVELS):
            scores: dict[int, list[Tensor]] = {g: [] for g in missing}
            for x in chunks if missing else ():
                blocks = self._preactivations(self.block_inputs(x))
                for g in missing:
                    where = (blocks, self.partition, groups[g], norms)
                    if g not in levels:
                        levels[g] = self._level(g, budgets[g] / total, blocks, norms, world)
                    level = lowered(levels[g], attempt)
                    scores[g].append(entries_reaching(level, *where).scores)
            for g in list(missing):
                enough = world.total(sum(map(len, scores[g])), self.device) >= budgets[g]
                if enough or attempt == NUM_LEVELS - 1:
                    cuts[g] = self._levels[g] = kth_largest(scores[g], budgets[g], world)
                    missing.remove(g)
        return torch.stack(cuts)

    def _level(
        self, g: int, share: float, blocks: list[Any], norms: Tensor | None, world: World
    ) -> Tensor:
        """Where to look first for the largest `share` scores per pair of group g."""
        level = self._levels.get(g)
        if level is None:
            group = self.partition.groups[g]
            return sampled_level(share, blocks, self.partition, group, norms, world)
        return level.to(self.device, self.dtype)

    def _select(
        self, x: Tensor, cuts: Tensor | None, world: World, dead: Tensor | None = None
    ) -> Selection:
        """Choose what is active in normalised `x` [N, d_in], with gradients to the encoder.

        With the ids of `dead` latents also the `k_aux` strongest of them in every pair.
        """
        # What is exact must stay so under autocast.
        with _without_autocast(x.device):
            inputs = self.block_inputs(x)
        with torch.no_grad(), _without_autocast(x.device):
            if cuts is None and not self.training:
                cuts = self.threshold
            learned = None if cuts is None else torch.isfinite(cuts).tolist()
            by_row = learned is not None and not self.training and not all(learned)
            wanted = dead if dead is not None and len(dead) else None
            kept = by_row or wanted is not None
            blocks = self._preactivations(inputs, exact=by_row, kept=kept)
            norms = self._score_norms()
            num_pairs = world.total(len(x), x.device)
            budgets = self.budgets(num_pairs)
            found, smallest = [], []
            for g, group in enumerate(self.partition.groups):
                where = (blocks, self.partition, group, norms)
                if cuts is None:
                    share = budgets[g] / max(num_pairs, 1)
                    level = self._level(g, share, blocks, norms, world)
                    entries, cut = largest_entries(budgets[g], level, *where, world)
                    if budgets[g]:
                        self._levels[g] = cut
                elif self.training or (learned and learned[g]):
                    cut = cuts[g].to(self.dtype)
                    entries = entries_reaching(cut, *where)
                else:
                    k = max(round(group.share * self.cfg.k), 1)
                    entries, cut = largest_entries_per_row(k, *where), x.new_zeros(())
                found.append(entries)
                smallest.append(cut.to(torch.float32))
            revived = None
            if wanted is not None:
                revived = strongest_per_row(self._k_aux, wanted, blocks, self.partition)
        bias, groups = self.encoder.bias, [group.blocks for group in self.partition.groups]
        parts = self._by_block(found, groups)
        num_active = [len(part.acts) for part in parts]
        if revived is not None:
            dead_parts = self._by_block([revived], [range(len(parts))])
            parts = [a.followed_by(b, len(x)) for a, b in zip(parts, dead_parts, strict=True)]
        codes = self._attached(inputs, parts, bias, 1 if revived is None else 2)
        return Selection(codes, torch.stack(smallest), num_active)

    def _by_block(self, found: Sequence[Entries], groups: Sequence[Sequence[int]]) -> list[Entries]:
        """The entries of every block, from those of groups of blocks."""
        parts: dict[int, Entries] = {}
        for entries, members in zip(found, groups, strict=True):
            if len(members) == 1:
                parts[members[0]] = entries
                continue
            for b in members:
                block = self.partition.blocks[b]
                inside = (entries.latents >= block.start) & (entries.latents < block.stop)
                parts[b] = entries.where(inside)
        return [parts[b] for b in range(len(parts))]

    def _attached(
        self, inputs: Sequence[Tensor], parts: Sequence[Entries], bias: Tensor, times: int = 1
    ) -> list[SparseCode]:
        """One code per block, over its pairs so many times, with gradients to the encoder."""
        codes = []
        sizes = [len(block) for block in self.partition.blocks]
        biases = [bias] if len(sizes) == 1 else bias.split(sizes)
        for block, weight, b, x, part in zip(
            self.partition.blocks, self.encoder.weights, biases, inputs, parts, strict=True
        ):
            indices = part.latents - block.start if block.start else part.latents
            code = SparseCode(part.acts, indices, part.rows, (times * len(x), len(block)))
            codes.append(sparse_ops.encode(x, self._reduced(weight, block), b, code))
        return codes

    @property
    def _k_aux(self) -> int:
        return self.cfg.k_aux or round(sum(self.d_sources) / len(self.d_sources)) // 2

    def _joined(self, codes: list[SparseCode]) -> SparseCode:
        starts = [block.start for block in self.partition.blocks]
        return sparse_ops.concatenate_columns(codes, starts, self.num_latents)

    def encode_sparse(self, x: Tensor | Sequence[Tensor], world: World = ALONE) -> SparseCode:
        """The active latents of raw activations, as a sparse `[N, M]` code.

        Leading dimensions are flattened into N.
        """
        flat = self.normalize(x).reshape(-1, self.d_in)
        return self._joined(self._select(flat, None, world).codes)

    def encode(self, x: Tensor | Sequence[Tensor]) -> EncoderOutput:
        """sparsify's form of the code: `top_acts`, `top_indices` and dense `pre_acts`.

        `[..., K]`, `[..., K]`, `[..., M]`, padded to the widest row with activations of 0 at
        latents that the row does not have.
        """
        normalized = self.normalize(x)
        lead = normalized.shape[:-1]
        flat = normalized.reshape(-1, self.d_in)
        acts, indices = self._joined(self._select(flat, None, ALONE).codes).padded()
        parts = (acts, indices, self._dense_acts(flat))
        return EncoderOutput(*(part.reshape(*lead, part.shape[1]) for part in parts))

    # Decoding

    def _decode_blocks(self, codes: list[SparseCode]) -> Tensor:
        """Normalised reconstruction `[N, d_in]` from one code per block."""
        whole: list[Tensor] = []
        parts: list[list[Tensor]] = [[] for _ in self.d_sources]
        for block, weight, code in zip(self.partition.blocks, self.decoders, codes, strict=True):
            out = sparse_ops.decode(code, weight)
            if out.shape[1] == self.d_in:
                whole.append(out)
                continue
            widths = [self.d_sources[s] for s in block.sources]
            pieces = [out] * len(widths) if block.tied else out.split(widths, 1)
            for s, piece in zip(block.sources, pieces, strict=True):
                parts[s].append(piece)
        if any(parts):
            num_pairs = codes[0].shape[0]
            by_source = [
                sum(p[1:], p[0]) if p else self.b_dec.new_zeros(num_pairs, d)
                for p, d in zip(parts, self.d_sources, strict=True)
            ]
            whole.append(torch.cat(by_source, 1))
        return sum(whole[1:], whole[0])

    def _split_blocks(self, code: SparseCode) -> list[SparseCode]:
        codes = []
        for block in self.partition.blocks:
            mine = (code.indices >= block.start) & (code.indices < block.stop)
            codes.append(
                SparseCode(
                    code.acts[mine],
                    code.indices[mine] - block.start,
                    code.rows[mine],
                    (code.shape[0], len(block)),
                )
            )
        return codes

    def decode_sparse(self, code: SparseCode) -> Tensor:
        """Reconstruction in the space of the input, `[N, d_in]`."""
        return self.denormalize(self._decode_blocks(self._split_blocks(code)) + self.b_dec)

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """Reconstruction in the space of the input, `[..., d_in]`, from `[..., K]` pairs."""
        lead, width = top_acts.shape[:-1], top_acts.shape[-1]
        acts, indices = top_acts.reshape(-1).to(self.dtype), top_indices.reshape(-1)
        num_pairs = acts.numel() // width
        rows = torch.arange(num_pairs, device=acts.device).repeat_interleave(width)
        code = SparseCode(acts, indices, rows, (num_pairs, self.num_latents))
        return self.decode_sparse(code).reshape(*lead, self.d_in)

    # Training

    def forward(
        self,
        x: Tensor | Sequence[Tensor],
        y: Tensor | None = None,
        *,
        dead_mask: Tensor | None = None,
        total_variance: Tensor | None = None,
        num_pairs: float | None = None,
        cuts: Tensor | None = None,
        world: World = ALONE,
        normalized: bool = False,
        padded: bool = True,
    ) -> CrosscoderOutput:
        """Reconstruct, and measure the terms of the loss (equation 2).

        Args:
            x: raw activations, `[N, d_in]` or one `[N, d_s]` per source.
            y: must be left out; a crosscoder reconstructs its input.
            dead_mask: `[M]`, true for the latents that the auxiliary loss revives.
            total_variance: denominator of the FVU; of the whole batch when x is a part of it.
            num_pairs: pairs of the whole batch when x is a part of it (each rank's share of them).
            cuts: `[G]` from `find_cuts`, when x is a part of a batch.
            world: the ranks that share the batch.
            normalized: x is normalised already.
            padded: without it `latent_acts` and `latent_indices` are flat `[E]`, and `sae_out` is
                empty, `[0, d_in]`; this saves time and memory when only the loss is wanted.
        """
        if y is not None and y is not x:
            raise ValueError("A crosscoder reconstructs its input; it takes no separate target.")
        if self.training and self.device.type == "cpu":
            cpu_kernels.start()
        target = (x if normalized else self.normalize(x)).reshape(-1, self.d_in)  # type: ignore[union-attr]
        if num_pairs is None:
            num_pairs = len(target)
        if total_variance is None:
            mean = target.sum(0) / len(target)
            total_variance = sparse_ops.squared_distances(target, mean, self.d_sources).sum()
        dead = None if dead_mask is None else dead_mask.nonzero()[:, 0]
        by_residual = self.cfg.auxk_form == "residual"
        selection = self._select(target, cuts, world, None if by_residual else dead)

        def terms(*acts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            now = [code.with_acts(a) for code, a in zip(selection.codes, acts, strict=True)]
            decoded = self._decode_blocks(now)
            answer = None
            if len(decoded) > len(target):
                decoded, answer = decoded.split(len(target))
            error, per_source = sparse_ops.errors(target, decoded, self.b_dec, self.d_sources)
            fvu = per_source.sum() / total_variance
            loss = fvu
            if self.cfg.loss == "l2":
                errors = error.split(self.d_sources, 1)
                norms = torch.stack([e.norm(dim=1).sum() for e in errors]).sum()
                loss = norms / (total_variance * num_pairs * len(errors)).sqrt()
            auxk = loss.new_zeros(())
            if dead is not None and len(dead):
                residual = error.detach()
                e_hat = self._answer_to(residual, dead) if answer is None else answer
                auxk = self._auxk_loss(residual, e_hat, num_pairs, world)
            out = decoded + self.b_dec if padded else decoded[:0]
            return out, per_source, fvu, loss, auxk

        acts = [code.acts for code in selection.codes]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out, per_source, fvu, loss, auxk = checkpoint(terms, *acts, use_reentrant=False)
        else:
            out, per_source, fvu, loss, auxk = terms(*acts)

        code = self._joined(selection.active(len(target)))
        latent_acts, latent_indices = code.padded() if padded else (code.acts, code.indices)
        return CrosscoderOutput(
            sae_out=self.denormalize(out) if padded else out,
            latent_acts=latent_acts,
            latent_indices=latent_indices,
            fvu=fvu,
            auxk_loss=auxk,
            multi_topk_fvu=loss.new_zeros(()),
            loss=loss,
            code=code,
            errors=per_source.detach(),
            cuts=selection.cuts,
        )

    def _auxk_loss(self, residual: Tensor, e_hat: Tensor, num_pairs: float, world: World) -> Tensor:
        """Squared error of the dead latents' reconstruction of the residual (B.1.5).

        Divided by the residual's variance; computed on the dead columns only, without b_dec.
        """
        moments = world.sum(
            torch.cat(
                [
                    residual.sum(0),
                    residual.pow(2).sum()[None],
                    residual.new_tensor([float(len(residual))]),
                ]
            )
        )
        total, squares, count = moments[:-2], moments[-2], moments[-1]
        variance = (squares - total.pow(2).sum() / count) / world.size

        # A chunk counts by its share of the batch, so that chunks add up to the whole.
        share = count / (num_pairs * world.size)
        auxk = share * (e_hat - residual).pow(2).sum() / variance
        return torch.where(torch.isfinite(auxk), auxk, torch.zeros_like(auxk))

    def _answer_to(self, residual: Tensor, dead: Tensor) -> Tensor:
        """The dead latents that answer the residual most strongly, decoded: `[N, d_in]`.

        B.1.5 as printed.
        """
        bias = torch.zeros_like(self.encoder.bias)
        with torch.no_grad(), _without_autocast(residual.device):
            inputs = self.block_inputs(residual)
            blocks = self._preactivations(inputs, bias, exact=True)
            revived = strongest_per_row(self._k_aux, dead, blocks, self.partition)
        parts = self._by_block([revived], [range(len(blocks))])
        return self._decode_blocks(self._attached(inputs, parts, bias))

    @torch.no_grad()
    def update_threshold(self, cuts: Tensor, decay: float) -> None:
        """Move the inference thresholds towards the batch's smallest selected scores `[G]`."""
        first = torch.isnan(self.threshold)
        moved = self.threshold * decay + cuts.float() * (1 - decay)
        usable = torch.isfinite(cuts)
        self.threshold.copy_(
            torch.where(usable, torch.where(first, cuts.float(), moved), self.threshold)
        )

    def set_decoder_norm_to_unit_norm(self):
        raise ValueError("Unit decoder norms would erase a crosscoder's relative decoder norms.")

    # Files

    def save_to_disk(self, path: Path | str) -> None:
        """Write `sae.safetensors` and `cfg.json`, each whole or not at all."""
        checkpoints.save(self, Path(path))

    @staticmethod
    def load_from_disk(
        path: Path | str, device: str | torch.device = "cpu", *, decoder: bool = True
    ) -> Crosscoder:
        """Load any architecture's checkpoint, in evaluation mode.

        Raises FileNotFoundError or ValueError naming the file and the remedy.
        """
        return checkpoints.load(Path(path), device)

    @staticmethod
    def load_many(
        name: str,
        local: bool = False,
        layers: list[str] | None = None,
        device: str | torch.device = "cpu",
        *,
        decoder: bool = True,
        pattern: str | None = None,
    ) -> dict[str, Crosscoder]:  # type: ignore[override]
        """Load all crosscoders of a run folder or hub repository, by their folder's name."""
        return checkpoints.load_many(name, local, layers, device, pattern)

    @staticmethod
    def load_one(
        run: Path | str, seed: int | None = None, device: str | torch.device = "cpu"
    ) -> Crosscoder:
        """The crosscoder of a run folder, that of one initial seed if it has several.

        Raises ValueError if there is none of that seed.
        """
        return checkpoints.load_one(Path(run), seed, device)

    @staticmethod
    def load_from_hub(
        name: str,
        hookpoint: str | None = None,
        device: str | torch.device = "cpu",
        *,
        decoder: bool = True,
    ) -> Crosscoder:
        """Load one crosscoder from a hub repository, or from a folder of that layout."""
        return checkpoints.load_from_hub(name, hookpoint, device)

    def push_to_hub(self, repo: str, hookpoint: str | None = None, **options: Any) -> str:
        """Upload to `<repo>/<hookpoint>` on the hub, or into an existing local folder.

        `options` go to `HfApi.upload_folder`. Returns where it went.
        """
        return checkpoints.push_to_hub(self, repo, hookpoint, **options)

    def export_sae(self, source: int, path: Path | str) -> SparseCoder:
        """Write one source's half as a folder that plain sparsify and delphi load.

        The result is a SAE of that model alone: it reads raw activations of one source, and picks
        the k largest activations of each token, so its latents fire where that source alone
        says so. Its pre-activations are those that the crosscoder has where the other sources'
        normalised activations are 0, that is, at their means if the normalisation is centred:
        `b_enc + x_s @ encoder_weight(s).T`. An exclusive latent of a residual DFC, from which the
        other models' prediction is taken, so reads its source's whitened activation with nothing
        predicted. Latents that the source may not read never fire.
        """
        return checkpoints.export_sae(self, source, Path(path))


def _without_autocast(device: torch.device) -> Any:
    """Full precision inside, whatever is outside."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
