"""Sparse codes and the differentiable operations on them.

N pairs, M latents, D width, E active entries. An operation costs O(E * D); nothing of shape
`[N, M]` or `[E, D]` is kept for the backward pass.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpu_kernels, triton_kernels


@dataclass(frozen=True)
class SparseCode:
    """Active latents of N pairs, entries sorted by pair (CSR and COO at once).

    `acts` [E] activations; `indices` [E] latent of each entry; `rows` [E] pair of each entry;
    `shape` is (N, M).
    """

    acts: Tensor
    indices: Tensor
    rows: Tensor
    shape: tuple[int, int]

    @cached_property
    def counts(self) -> Tensor:
        """Active latents of each pair, `[N]`."""
        return torch.bincount(self.rows, minlength=self.shape[0])

    @cached_property
    def offsets(self) -> Tensor:
        """Where each pair's entries begin, `[N]`."""
        return starts_of(self.rows, self.shape[0])

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """The order that sorts the entries by latent `[E]`, and where each latent begins `[M]`."""
        return order_by(self.indices, self.shape[1])

    def with_acts(self, acts: Tensor) -> SparseCode:
        """The same entries with other activations."""
        code = SparseCode(acts, self.indices, self.rows, self.shape)
        for name in ("counts", "offsets", "by_latent"):
            if name in self.__dict__:
                code.__dict__[name] = self.__dict__[name]
        return code

    def first(self, num_pairs: int, num_entries: int) -> SparseCode:
        """The code of the first pairs alone, which have the first `num_entries` entries."""
        if num_pairs == self.shape[0]:
            return self
        acts, indices, rows = (p[:num_entries] for p in (self.acts, self.indices, self.rows))
        return SparseCode(acts, indices, rows, (num_pairs, self.shape[1]))

    def to_dense(self) -> Tensor:
        """The code as a dense `[N, M]` tensor."""
        dense = self.acts.new_zeros(self.shape)
        return dense.index_put_((self.rows, self.indices), self.acts)

    def padded(self) -> tuple[Tensor, Tensor]:
        """`(top_acts, top_indices)`, each `[N, width of the widest row]`.

        Padding is an activation of 0 at a latent that the row does not have, so that scattering it
        into a dense tensor, as delphi does, overwrites nothing.
        """
        width = max(int(self.counts.max()), 1) if len(self.counts) else 1
        column = torch.arange(len(self.rows), device=self.rows.device) - self.offsets[self.rows]
        acts = self.acts.new_zeros(self.shape[0], width).index_put((self.rows, column), self.acts)
        indices = self.indices.new_full((self.shape[0], width), self.shape[1])
        indices[self.rows, column] = self.indices
        places = torch.arange(width, device=indices.device)
        unused = (indices.sort(1).values == places).long().cumprod(1).sum(1, keepdim=True)
        return acts, torch.where(indices == self.shape[1], unused, indices)


def order_by(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The stable order of `keys` [E] in 0..size-1 `[E]`, and where each begins in it `[size]`."""
    if cpu_kernels.serve(keys):
        return cpu_kernels.order_by(keys, size)
    return torch.argsort(keys, stable=True), starts_of(keys, size)


def starts_of(keys: Tensor, size: int) -> Tensor:
    """Where each of 0..size-1 begins among sorted `keys` [E], `[size]`."""
    if cpu_kernels.serve(keys):
        return cpu_kernels.order_by(keys, size)[1]
    counts = torch.bincount(keys, minlength=size)
    return counts.cumsum(0) - counts


def concatenate_columns(codes: list[SparseCode], starts: list[int], num_latents: int) -> SparseCode:
    """Join codes over disjoint column ranges that begin at `starts` into one over all latents."""
    if len(codes) == 1 and starts == [0] and codes[0].shape[1] == num_latents:
        return codes[0]
    rows = torch.cat([code.rows for code in codes])
    order, _ = order_by(rows, codes[0].shape[0])
    acts = torch.cat([code.acts for code in codes])
    indices = torch.cat([c.indices + s for c, s in zip(codes, starts, strict=True)])
    acts, indices, rows = (part.index_select(0, order) for part in (acts, indices, rows))
    return SparseCode(acts, indices, rows, (codes[0].shape[0], num_latents))


def _use_kernels(table: Tensor) -> bool:
    """Whether the Triton kernels serve `table`; `SPARSIFY_CROSSCODER_TRITON=0` keeps to torch."""
    if not triton_kernels.available(table) or os.environ.get("SPARSIFY_CROSSCODER_TRITON") == "0":
        return False
    return _kernels_work(table.device, table.dtype)


@cache
def _kernels_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compile on this machine and add up as torch does, tried once."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 48, generator=generator).to(device, dtype)
    rows, indices = (torch.randint(0, 8, (600,), generator=generator).to(device) for _ in "ab")
    weights = torch.rand(600, generator=generator).to(device)
    offsets = torch.tensor([0, 1, 1, 590], device=device)
    try:
        sums = triton_kernels.weighted_row_sums(table, indices, offsets, weights, torch.float32)
        dots = triton_kernels.entry_dots(table, table, rows, indices)
    except Exception as error:  # a missing compiler, a driver that is too old: all are reasons
        reason = f"{type(error).__name__}: {error}"
    else:
        wide = table.double()
        terms = weights.double()[:, None] * wide[indices]
        expected = torch.stack([part.sum(0) for part in terms.split([1, 0, 589, 10])])
        right = torch.allclose(sums.double(), expected, rtol=1e-3, atol=1e-2)
        right &= torch.allclose(dots.double(), (wide[rows] * wide[indices]).sum(1), atol=1e-3)
        if right:
            return True
        reason = "their sums differ from those of torch"
    warnings.warn(f"The Triton kernels are not used, torch's own are: {reason}", stacklevel=2)
    return False


def sum_rows(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of `table` [R, D], one per segment that begins at `offsets` [B].

    Returns `[B, D]`.
    """
    if len(indices) == 0:
        return table.new_zeros(len(offsets), table.shape[1])
    if _use_kernels(table):
        return triton_kernels.weighted_row_sums(table, indices, offsets, weights)
    weights = weights.to(table.dtype)
    return F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)


def entry_dots(a: Tensor, b: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """`<a[rows[e]], b[indices[e]]>` for every entry, `[E]`, from `a` [N, D] and `b` [M, D].

    No `[E, D]` tensor is made. The latents are walked in order, so that each row of `b`, the large
    table, is read once.
    """
    if len(rows) == 0:
        return a.new_zeros(0)
    if cpu_kernels.serve_entries(b, len(rows)) and a.dtype == b.dtype:
        return cpu_kernels.entry_dots(a, b, rows, indices)
    order, _ = order_by(indices, len(b))
    if _use_kernels(b):
        dots = triton_kernels.entry_dots(b, a, indices[order], rows[order]).to(a.dtype)
        return torch.empty_like(dots).index_copy_(0, order, dots)
    # The backward of embedding_bag's per-sample weights is this product; bag b of it is a[b].
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        a.contiguous(), b, indices[order], rows.new_zeros(1), rows[order], 0, -1
    )
    return torch.empty_like(dots).index_copy_(0, order, dots)


def sum_by_latent(code: SparseCode, weights: Tensor, table: Tensor) -> Tensor:
    """`C^T @ table` for the matrix C that holds `weights` at the code's entries: `[M, D]`.

    A code over more pairs than `table` [N, D] has rows begins again with the first one.
    """
    order, starts = code.by_latent
    rows = code.rows.index_select(0, order)
    if len(table) < code.shape[0]:
        rows %= len(table)
    return sum_rows(table, rows, starts, weights.index_select(0, order))


def _few_entries(code: SparseCode, first: Tensor, *others: Tensor) -> bool:
    """Whether kernels on the CPU add up these entries of these tensors."""
    same = all(other.dtype == first.dtype for other in others)
    return same and cpu_kernels.serve_entries(others[0], len(code.indices))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, code: SparseCode) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.code = code.with_acts(code.acts[:0])
        ctx.bias_dtype = bias.dtype
        return code.acts.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        code: SparseCode = ctx.code
        grad_x = grad_weight = grad_bias = None
        if _few_entries(code, x, weight, grad) and ctx.bias_dtype == x.dtype:
            grad_weight, grad_bias = cpu_kernels.encoding_gradients(
                grad, x, code.rows, code.by_latent
            )
        if ctx.needs_input_grad[0]:
            grad_x = sum_rows(weight, code.indices, code.offsets, grad).to(x.dtype)
            grad_x = grad_x.view(-1, *x.shape).sum(0) if len(grad_x) > len(x) else grad_x
        if ctx.needs_input_grad[1] and grad_weight is None:
            grad_weight = sum_by_latent(code, grad, x.to(weight.dtype))
        if ctx.needs_input_grad[2] and grad_bias is None:
            grad_bias = grad.new_zeros(code.shape[1], dtype=ctx.bias_dtype)
            grad_bias.index_add_(0, code.indices, grad.to(ctx.bias_dtype))
        return grad_x, grad_weight, grad_bias, None


def encode(x: Tensor, weight: Tensor, bias: Tensor, code: SparseCode) -> SparseCode:
    """Give the selected activations their gradient to `x` [N, D], `weight` [M, D], `bias` [M].

    `code.acts` must hold `(x @ weight.T + bias)` at the code's entries. The code may be over the
    pairs several times, one time after the other.
    """
    if torch.is_grad_enabled():
        _ = code.by_latent  # once, for the gradients of both matrices
    return code.with_acts(_Encode.apply(x, weight, bias, code))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, weight: Tensor, code: SparseCode) -> Tensor:
        ctx.save_for_backward(acts, weight)
        ctx.code = code.with_acts(code.acts[:0])
        if _few_entries(code, acts, weight):
            return cpu_kernels.row_sums(weight, code.rows, code.indices, acts, code.shape[0])
        return sum_rows(weight, code.indices, code.offsets, acts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        acts, weight = ctx.saved_tensors
        code: SparseCode = ctx.code
        if _few_entries(code, acts, weight, grad):
            where = code.rows, code.by_latent
            return *cpu_kernels.decoding_gradients(grad, acts, weight, *where), None
        grad = grad.contiguous()
        grad_acts = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_acts = entry_dots(grad, weight.detach(), code.rows, code.indices).to(acts.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = sum_by_latent(code, acts, grad)
        return grad_acts, grad_weight, None


def decode(code: SparseCode, weight: Tensor) -> Tensor:
    """`C @ weight`: reconstructions `[N, D]` from a code over M latents and `weight` [M, D]."""
    return _Decode.apply(code.acts, weight, code)


def squared_distances(x: Tensor, centre: Tensor, widths: list[int]) -> Tensor:
    """Sum over `x` [N, D] of the squared distance from `centre` [D] in each source, `[S]`.

    `widths` are those of the sources, whose columns lie side by side.
    """
    if not x.requires_grad and cpu_kernels.serve_sums(x) and x.dtype == centre.dtype:
        return cpu_kernels.squared_distances(x, centre, widths)
    return torch.stack([part.sum() for part in (x - centre).pow(2).sum(0).split(widths)])


def norms_by_source(table: Tensor, widths: list[int]) -> Tensor:
    """L2 norm of each source's part of every row of `table` [R, D], `[S, R]`, without a gradient.

    `widths` are those of the sources, whose columns lie side by side.
    """
    if cpu_kernels.serve_sums(table):
        return cpu_kernels.norms_by_source(table, widths)
    return torch.stack([part.norm(dim=1) for part in table.detach().split(widths, 1)])


class _Errors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, target: Tensor, decoded: Tensor, bias: Tensor, widths: list[int]
    ) -> tuple[Tensor, Tensor]:
        if cpu_kernels.serve_sums(target) and target.dtype == decoded.dtype == bias.dtype:
            error, squares = cpu_kernels.errors(target, decoded, bias, widths)
        else:
            error = target - (decoded + bias)
            squares = torch.stack([part.square().sum() for part in error.split(widths, 1)])
        ctx.save_for_backward(error)
        ctx.set_materialize_grads(False)
        ctx.widths, ctx.bias_dtype = widths, bias.dtype
        return error, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor | None, grad_squares: Tensor | None):  # type: ignore[override]
        (error,) = ctx.saved_tensors
        grad = grad_bias = None
        if grad_squares is not None and cpu_kernels.serve_sums(error):
            grad, grad_bias = cpu_kernels.scaled_by_source(error, -2 * grad_squares, ctx.widths)
        elif grad_squares is not None:
            scales = zip(-2 * grad_squares, ctx.widths, strict=True)
            grad = error * torch.cat([scale.expand(width) for scale, width in scales])
        if grad_error is not None:
            grad = -grad_error if grad is None else grad - grad_error
            grad_bias = None
        if grad is None:
            return None, None, None, None
        if grad_bias is None:
            grad_bias = grad.sum(0)
        grad_target = -grad if ctx.needs_input_grad[0] else None
        return grad_target, grad, grad_bias.to(ctx.bias_dtype), None


def errors(
    target: Tensor, decoded: Tensor, bias: Tensor, widths: list[int]
) -> tuple[Tensor, Tensor]:
    """`target - (decoded + bias)` [N, D], and its sum of squares by source, `[S]`.

    `widths` are those of the sources, whose columns lie side by side.
    """
    return _Errors.apply(target, decoded, bias, widths)
