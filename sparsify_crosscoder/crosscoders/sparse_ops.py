"""The differentiable operations on sparse codes.

N pairs, M latents, D width, E active entries. An operation costs O(E * D); nothing of shape
`[N, M]` or `[E, D]` is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import kernels
from .codes import SparseCode


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
        if ctx.needs_input_grad[0]:
            grad_x = kernels.segment_sums(weight, code.indices, code.offsets, grad).to(x.dtype)
            grad_x = grad_x.view(-1, *x.shape).sum(0) if len(grad_x) > len(x) else grad_x
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_weight, grad_bias = kernels.encoding_gradients(grad, x.to(weight.dtype), code)
            grad_bias = grad_bias.to(ctx.bias_dtype)
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
        return kernels.row_sums(weight, code, acts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        acts, weight = ctx.saved_tensors
        return *kernels.decoding_gradients(grad, acts, weight, ctx.code), None


def decode(code: SparseCode, weight: Tensor) -> Tensor:
    """`C @ weight`: reconstructions `[N, D]` from a code over M latents and `weight` [M, D]."""
    return _Decode.apply(code.acts, weight, code)


class _Errors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, target: Tensor, decoded: Tensor, bias: Tensor, widths: list[int]
    ) -> tuple[Tensor, Tensor]:
        error, squares = kernels.errors(target, decoded, bias, widths)
        ctx.save_for_backward(error)
        ctx.set_materialize_grads(False)
        ctx.widths, ctx.bias_dtype = widths, bias.dtype
        return error, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor | None, grad_squares: Tensor | None):  # type: ignore[override]
        (error,) = ctx.saved_tensors
        grad = grad_bias = None
        if grad_squares is not None:
            grad, grad_bias = kernels.scaled_by_source(error, -2 * grad_squares, ctx.widths)
        if grad_error is not None:
            grad = -grad_error if grad is None else grad - grad_error
            grad_bias = grad.sum(0)
        if grad is None or grad_bias is None:
            return None, None, None, None
        grad_target = -grad if ctx.needs_input_grad[0] else None
        return grad_target, grad, grad_bias.to(ctx.bias_dtype), None


def errors(
    target: Tensor, decoded: Tensor, bias: Tensor, widths: list[int]
) -> tuple[Tensor, Tensor]:
    """`target - (decoded + bias)` [N, D], and its sum of squares by source, `[S]`.

    `widths` are those of the sources, whose columns lie side by side.
    """
    return _Errors.apply(target, decoded, bias, widths)
