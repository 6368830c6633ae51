"""AuxK over few dead latents: dense products with their rows alone (B.1.5).

Entry by entry, AuxK costs what its k_aux strongest latents cost in every pair, however few are
dead. As soon as a good part of the dead ones are among the strongest, products with all of them
cost less: these run at the rate of a matrix product and not of the memory.

N pairs, M latents, m dead latents of a block, D the width that it reads or writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .float32 import full_precision
from .partition import Block
from .sparse_ops import RowGradients

# The share of the dead latents that are among the strongest, from which on products cost less. On
# a GPU by examples/benchmarks/roofline.py: 49 ns an entry, 1.2 ns a product's cell at width 8192.
_DENSE_FROM = {"cpu": 0.2, "cuda": 0.025}


class DeadLatents:
    """The dead latents of a step, of which the `k` strongest of every pair answer its error.

    `mask` [M] has them. They read activations or, with `of_residual`, what is left of them.
    Their dense products are in full precision or, with `tf32`, in TF32.
    """

    def __init__(
        self, mask: Tensor, k: int, blocks: Sequence[Block], *, of_residual: bool, tf32: bool
    ):
        self.k, self.of_residual, self.tf32 = k, of_residual, tf32
        self.by_block = [mask[b.start : b.stop].nonzero()[:, 0] for b in blocks]
        """Counted in each block, `[m]`."""

        self.count = sum(len(ids) for ids in self.by_block)
        self.densely = k >= _DENSE_FROM.get(mask.device.type, 1.0) * self.count
        self.with_active = not (self.densely or of_residual)
        self.encoders: list[RowGradients | None] = [None] * len(blocks)
        self.decoders: list[RowGradients | None] = [None] * len(blocks)
        if self.densely:
            self.encoders = [RowGradients() for _ in blocks]
            self.decoders = [RowGradients() for _ in blocks]

    def ids(self, blocks: Sequence[Block]) -> Tensor:
        """Counted over all blocks, `[m]`."""
        pairs = zip(self.by_block, blocks, strict=True)
        return torch.cat([ids + block.start for ids, block in pairs])


@dataclass(frozen=True)
class DeadRows:
    """What a block has of its dead latents."""

    ids: Tensor
    """Counted in the block, `[m]`."""

    encoder: Tensor
    """Of the whole block, `[M, D]`."""

    decoder: Tensor
    bias: Tensor | None
    """`[m]`; None for none."""

    encoder_gradient: RowGradients | None
    decoder_gradient: RowGradients | None


def answers(
    rows: Sequence[DeadRows], inputs: Sequence[Tensor], dead: DeadLatents, after: Tensor
) -> list[Tensor]:
    """What the strongest dead latents of every pair write, one `[N, D]` per block.

    The gradients of the blocks' matrices go where their `DeadRows` say, and are noted before any
    gradient reaches `after`, in whose making the matrices have the rest of theirs.
    """
    return list(_Answers.apply(rows, dead, after, *inputs))  # type: ignore[arg-type]


class _Answers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Sequence[DeadRows], dead: DeadLatents, after: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        with full_precision(after.device, tf32=dead.tf32):
            acts = [
                F.linear(x, one.encoder[one.ids], one.bias)
                for x, one in zip(inputs, rows, strict=True)
            ]
            chosen = _strongest(torch.cat(acts, 1), dead.k).split([a.shape[1] for a in acts], 1)
            acts = [a.masked_fill_(~mask, 0) for a, mask in zip(acts, chosen, strict=True)]
            ctx.rows, ctx.tf32 = rows, dead.tf32
            ctx.save_for_backward(*inputs, *acts)
            return tuple(a @ one.decoder[one.ids] for a, one in zip(acts, rows, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # type: ignore[override]
        rows: Sequence[DeadRows] = ctx.rows
        saved = ctx.saved_tensors
        grad_inputs: list[Tensor | None] = []
        for b, (one, x, acts, grad) in enumerate(
            zip(rows, saved[: len(rows)], saved[len(rows) :], grads, strict=True)
        ):
            with full_precision(x.device, tf32=ctx.tf32):
                grad_acts = (grad @ one.decoder[one.ids].T).masked_fill_(acts <= 0, 0)
                if one.decoder_gradient is not None:
                    one.decoder_gradient.add(one.ids, acts.T @ grad)
                if one.encoder_gradient is not None:
                    grad_bias = None if one.bias is None else grad_acts.sum(0)
                    one.encoder_gradient.add(one.ids, grad_acts.T @ x, grad_bias)
                wanted = ctx.needs_input_grad[3 + b]
                grad_inputs.append(grad_acts @ one.encoder[one.ids] if wanted else None)
        return None, None, None, *grad_inputs


def _strongest(acts: Tensor, k: int) -> Tensor:
    """Which are the k largest positive entries of their row in `acts` [N, m]."""
    positive = acts > 0
    if k >= acts.shape[1]:
        return positive
    largest = acts.topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(positive).scatter_(1, largest, True) & positive
