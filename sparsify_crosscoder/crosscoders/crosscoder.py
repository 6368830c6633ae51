"""The crosscoder: a SparseCoder over the concatenated activations of several models.

N pairs, M latents, S sources, D width of one source, d_in = sum of the widths. What it consists
of is in `parameters`, what it selects in `selector`; here is what it does with activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sparsify import SparseCoder
from sparsify.fused_encoder import EncoderOutput
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..hardware import has_native_bfloat16
from ..world import ALONE, World
from . import checkpoints, kernels, losses, sparse_ops
from .codes import SparseCode, concatenate_columns
from .export import export_sae
from .float32 import full_precision
from .outputs import Batch, CrosscoderOutput, Selection, Terms
from .parameters import CrosscoderParameters
from .preactivations import ExactPreactivations, Preactivations, screened
from .revival import DeadLatents, DeadRows, answers
from .selection import Entries, Scores, by_block, strongest_per_row
from .sparse_ops import RowGradients

FirstPairs = Callable[[int | None], Iterable[Tensor]]
"""This rank's part of a run's first pairs, so many or, for None, those that its normalisation was
estimated from: normalised, without outliers, in batches `[n, d_in]`."""


class Crosscoder(CrosscoderParameters):
    """Standard crosscoder: every latent reads and writes every source (section 2.1).

    Args:
        d_sources: width of each source.
        cfg: configuration of the architecture.
        sources: what each source is, for example `{"name": ..., "hookpoint": ...}`; kept in
            `cfg.json`.

    Inputs `x` are raw activations: one `[..., d_in]` tensor, or a list of one `[..., d_s]` tensor
    per source. They are normalised inside by the stored `mean` [d_in] and `factors` [S].

    In training mode the batch decides what is active (BatchTopK); in evaluation mode a learned
    threshold does, pair by pair, or the k largest scores of each pair while none is learned.

    Raises ValueError if the configuration does not fit the widths.
    """

    def prepare(self, pairs: FirstPairs, world: World = ALONE) -> None:
        """Fit what the architecture fits before training; nothing, unless a subclass does."""

    # Encoding

    def _dense_acts(self, x: Tensor) -> Tensor:
        """relu of all pre-activations, `[N, M]`, without a gradient."""
        acts = torch.empty(len(x), self.num_latents, device=x.device, dtype=self.dtype)
        weights, inputs = self.encoder.weights, self.block_inputs(x)
        for block, weight, x_block in zip(self.partition.blocks, weights, inputs, strict=True):
            bias = self.encoder.bias[block.start : block.stop]
            acts[:, block.start : block.stop] = F.linear(x_block, weight, bias)
        return acts.relu_()

    def budgets(self, num_pairs: int) -> list[int]:
        """Entries that each group selects from `num_pairs` pairs."""
        return self.selector.budgets(self.cfg.k, num_pairs)

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
    ) -> list[Preactivations]:
        """What every block makes of its input, without a gradient; `kept` for several looks."""
        form = ExactPreactivations if exact or self.screen_dtype is None else screened
        bias = self.encoder.bias if bias is None else bias
        blocks = zip(self.partition.blocks, self.encoder.weights, inputs, strict=True)
        return [
            form(x, weight, bias[block.start : block.stop], kept) for block, weight, x in blocks
        ]

    def _scores(self, preactivations: Sequence[Preactivations], norms: Tensor | None) -> Scores:
        return Scores(preactivations, self.partition, norms, self.dtype)

    def update_threshold(self, cuts: Tensor, decay: float) -> None:
        """Move the inference thresholds towards the batch's smallest selected scores `[G]`."""
        self.selector.update_threshold(cuts, decay)

    def find_cuts(self, chunks: Sequence[Tensor], world: World = ALONE) -> Tensor:
        """The smallest score that each group keeps of a batch given in chunks, `[G]`.

        `chunks` are normalised `[n, d_in]` pieces of this rank's part of the batch.
        """
        with torch.no_grad(), full_precision(self.device):
            norms = self.score_norms()

            def score(x: Tensor) -> Scores:
                return self._scores(self._preactivations(self.block_inputs(x)), norms)

            return self.selector.find_cuts(chunks, score, self.cfg.k, world)

    def _select(
        self, x: Tensor, cuts: Tensor | None, world: World, dead: DeadLatents | None = None
    ) -> Selection:
        """Choose what is active in normalised `x` [N, d_in], with gradients to the encoder.

        With `dead` latents that are chosen with the active ones also the strongest in every pair.
        """
        # What is exact must stay so under autocast and where TF32 is on.
        with full_precision(x.device):
            inputs = self.block_inputs(x)
        with torch.no_grad(), full_precision(x.device):
            rule = self.selector.rule(cuts)
            several = rule.by_row or (dead is not None and dead.with_active)
            blocks = self._preactivations(inputs, exact=rule.by_row, kept=several)
            scores = self._scores(blocks, self.score_norms())
            found, smallest = self.selector.choose(scores, rule, self.cfg.k, world)
            revived = None
            if dead is not None and dead.with_active:
                revived = strongest_per_row(dead.k, dead.ids(self.partition.blocks), scores)
        groups = [group.blocks for group in self.partition.groups]
        parts = by_block(found, groups, self.partition)
        num_active = [len(part.acts) for part in parts]
        if revived is not None:
            dead_parts = self._all_blocks(revived)
            parts = [a.followed_by(b, len(x)) for a, b in zip(parts, dead_parts, strict=True)]
        others = None if dead is None else dead.encoders
        times = 1 if revived is None else 2
        codes = self._attached(inputs, parts, self.encoder.bias, times, others)
        return Selection(codes, smallest, num_active)

    def _all_blocks(self, entries: Entries) -> list[Entries]:
        """Entries of the whole partition, by block."""
        return by_block([entries], [range(len(self.partition.blocks))], self.partition)

    def _attached(
        self,
        inputs: Sequence[Tensor],
        parts: Sequence[Entries],
        bias: Tensor,
        times: int = 1,
        others: Sequence[RowGradients | None] | None = None,
    ) -> list[SparseCode]:
        """One code per block, over its pairs so many times, with gradients to the encoder.

        What `others` hold, one per block, goes into these gradients.
        """
        codes = []
        others = others or [None] * len(parts)
        sizes = [len(block) for block in self.partition.blocks]
        biases = [bias] if len(sizes) == 1 else bias.split(sizes)
        weights, blocks = self.encoder.weights, self.partition.blocks
        for block, weight, b, x, part, other in zip(
            blocks, weights, biases, inputs, parts, others, strict=True
        ):
            indices = part.latents - block.start if block.start else part.latents
            code = SparseCode(part.acts, indices, part.rows, (times * len(x), len(block)))
            codes.append(sparse_ops.encode(x, weight, b, code, other))
        return codes

    @property
    def _k_aux(self) -> int:
        return self.cfg.k_aux or round(sum(self.d_sources) / len(self.d_sources)) // 2

    def _joined(self, codes: list[SparseCode]) -> SparseCode:
        starts = [block.start for block in self.partition.blocks]
        return concatenate_columns(codes, starts, self.num_latents)

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

    def _decode_blocks(
        self, codes: list[SparseCode], others: Sequence[RowGradients | None] | None = None
    ) -> Tensor:
        """Normalised reconstruction `[N, d_in]` from one code per block.

        What `others` hold, one per block, goes into the decoders' gradients.
        """
        blocks = zip(codes, self.decoders, others or [None] * len(codes), strict=True)
        return self._summed([sparse_ops.decode(*block) for block in blocks])

    def _summed(self, outputs: Sequence[Tensor]) -> Tensor:
        """What the blocks write together, `[N, d_in]`, from what each writes to its sources."""
        whole: list[Tensor] = []
        parts: list[list[Tensor]] = [[] for _ in self.d_sources]
        for block, out in zip(self.partition.blocks, outputs, strict=True):
            if out.shape[1] == self.d_in:
                whole.append(out)
                continue
            widths = [self.d_sources[s] for s in block.sources]
            pieces = [out] * len(widths) if block.tied else out.split(widths, 1)
            for s, piece in zip(block.sources, pieces, strict=True):
                parts[s].append(piece)
        if any(parts):
            num_pairs = len(outputs[0])
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
        batch: Batch = Batch(),  # noqa: B008
        normalized: bool = False,
        padded: bool = True,
    ) -> CrosscoderOutput:
        """Reconstruct, and measure the terms of the loss (equation 2).

        Args:
            x: raw activations, `[N, d_in]` or one `[N, d_s]` per source.
            y: must be left out; a crosscoder reconstructs its input.
            dead_mask: `[M]`, true for the latents that the auxiliary loss revives.
            total_variance: denominator of the FVU; of the whole batch when x is a part of it.
            batch: the batch that x is a part of, or shared by several ranks.
            normalized: x is normalised already.
            padded: without it `latent_acts` and `latent_indices` are flat `[E]`, and `sae_out` is
                empty, `[0, d_in]`; this saves time and memory when only the loss is wanted.
        """
        if y is not None and y is not x:
            raise ValueError("A crosscoder reconstructs its input; it takes no separate target.")
        if self.training:
            kernels.start(self.device)
        target = (x if normalized else self.normalize(x)).reshape(-1, self.d_in)  # type: ignore[union-attr]
        if total_variance is None:
            mean = target.sum(0) / len(target)
            total_variance = kernels.squared_distances(target, mean, self.d_sources).sum()
        dead = self._dead_latents(dead_mask)
        selection = self._select(target, batch.cuts, batch.world, dead)

        def measure(*acts: Tensor) -> Terms:
            codes = [code.with_acts(a) for code, a in zip(selection.codes, acts, strict=True)]
            return self._terms(target, codes, dead, total_variance, batch)

        acts = [code.acts for code in selection.codes]
        recomputed = self.gradient_checkpointing and torch.is_grad_enabled()
        terms = checkpoint(measure, *acts, use_reentrant=False) if recomputed else measure(*acts)
        return self._output(selection, terms, padded=padded)

    def _terms(
        self,
        target: Tensor,
        codes: list[SparseCode],
        dead: DeadLatents | None,
        total_variance: Tensor,
        batch: Batch,
    ) -> Terms:
        """What codes come to as a reconstruction of normalised `target` [N, d_in]."""
        decoded = self._decode_blocks(codes, None if dead is None else dead.decoders)
        answer = None
        if len(decoded) > len(target):
            decoded, answer = decoded.split(len(target))
        error, per_source = sparse_ops.errors(target, decoded, self.b_dec, self.d_sources)
        num_pairs = len(target) if batch.num_pairs is None else batch.num_pairs
        fvu = per_source.sum() / total_variance
        loss = fvu
        if self.cfg.loss == "l2":
            loss = losses.unsquared(error, self.d_sources, total_variance, num_pairs)
        auxk = loss.new_zeros(())
        if dead is not None:
            residual = error.detach()
            if answer is None:
                answer = self._answer(residual if dead.of_residual else target, dead, decoded)
            auxk = losses.auxiliary(residual, answer, num_pairs, batch.world)
        return Terms(decoded, per_source, fvu, loss, auxk)

    def _output(self, selection: Selection, terms: Terms, *, padded: bool) -> CrosscoderOutput:
        code = self._joined(selection.active(len(terms.decoded)))
        if padded:
            sae_out = self.denormalize(terms.decoded + self.b_dec)
            latent_acts, latent_indices = code.padded()
        else:
            sae_out, latent_acts, latent_indices = terms.decoded[:0], code.acts, code.indices
        return CrosscoderOutput(
            sae_out=sae_out,
            latent_acts=latent_acts,
            latent_indices=latent_indices,
            fvu=terms.fvu,
            auxk_loss=terms.auxk,
            multi_topk_fvu=terms.loss.new_zeros(()),
            loss=terms.loss,
            code=code,
            errors=terms.errors.detach(),
            cuts=selection.cuts,
        )

    def _dead_latents(self, mask: Tensor | None) -> DeadLatents | None:
        """Those that a mask `[M]` gives; None where it gives none."""
        if mask is None:
            return None
        of_residual = self.cfg.auxk_form == "residual"
        tf32 = self.cfg.auxk_products == "tf32"
        blocks = self.partition.blocks
        dead = DeadLatents(mask, self._k_aux, blocks, of_residual=of_residual, tf32=tf32)
        return dead if dead.count else None

    def _answer(self, read: Tensor, dead: DeadLatents, decoded: Tensor) -> Tensor:
        """The dead latents that answer most strongly to what they read, decoded: `[N, d_in]`.

        They read normalised activations or, in B.1.5 as printed, the residual, without a bias.
        `decoded` has its gradient after theirs.
        """
        with full_precision(read.device):
            inputs = self.block_inputs(read)
        if dead.densely:
            return self._summed(answers(self._dead_rows(dead), inputs, dead, decoded))
        bias = torch.zeros_like(self.encoder.bias)
        with torch.no_grad(), full_precision(read.device):
            blocks = self._preactivations(inputs, bias, exact=True)
            revived = strongest_per_row(
                dead.k, dead.ids(self.partition.blocks), self._scores(blocks, None)
            )
        return self._decode_blocks(self._attached(inputs, self._all_blocks(revived), bias))

    def _dead_rows(self, dead: DeadLatents) -> list[DeadRows]:
        """What every block has of its dead latents."""
        bias = None if dead.of_residual else self.encoder.bias.detach()
        weights = zip(self.encoder.weights, self.decoders, strict=True)
        gradients = zip(dead.encoders, dead.decoders, strict=True)
        rows = []
        for block, ids, matrices, noted in zip(
            self.partition.blocks, dead.by_block, weights, gradients, strict=True
        ):
            encoder, decoder = (matrix.detach() for matrix in matrices)
            own_bias = None if bias is None else bias[block.start : block.stop][ids]
            rows.append(DeadRows(ids, encoder, decoder, own_bias, *noted))
        return rows

    def set_decoder_norm_to_unit_norm(self):
        """Refused with ValueError: which model a latent writes to is told by its norms."""
        raise ValueError("Unit decoder norms would erase a crosscoder's relative decoder norms.")

    def remove_gradient_parallel_to_decoder_directions(self):
        """Refused with ValueError: norms are learned."""
        raise ValueError(
            "The gradient along a decoder vector changes its norm, which a crosscoder learns; it "
            "is not removed."
        )

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
        _check_decoder(decoder)
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
        _check_decoder(decoder)
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
        _check_decoder(decoder)
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
        return export_sae(self, source, Path(path))


def _check_decoder(decoder: bool) -> None:
    if not decoder:
        raise ValueError(
            "A crosscoder ranks its latents by their decoders' norms, so it is not loaded without "
            "its decoder; leave decoder=True."
        )
