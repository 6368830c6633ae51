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


class RowGradients:
    """What others have found for some rows of a matrix's gradient, to be added when it is made.

    So a large matrix has one gradient, though few of its rows have a part in something else too.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def add(self, rows: Tensor, grad: Tensor, grad_bias: Tensor | None = None) -> None:
        """Note the gradient `[m, D]` of rows `[m]`, no two the same, and of their bias `[m]`."""
        self._found.append((rows, grad, grad_bias))

    def move_to(self, grad: Tensor, grad_bias: Tensor | None = None) -> None:
        """Add what was noted to the gradients of the matrix and its bias, and forget it."""
        for rows, part, bias_part in self._found:
            grad.index_add_(0, rows, part.to(grad.dtype))
            if grad_bias is not None and bias_part is not None:
                grad_bias.index_add_(0, rows, bias_part.to(grad_bias.dtype))
        self._found.clear()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        code: SparseCode,
        others: RowGradients | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.others = others
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
            if ctx.others is not None:
                ctx.others.move_to(grad_weight, grad_bias)
        return grad_x, grad_weight, grad_bias, None, None


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    code: SparseCode,
    others: RowGradients | None = None,
) -> SparseCode:
    """Give the selected activations their gradient to `x` [N, D], `weight` [M, D], `bias` [M].

    `code.acts` must hold `(x @ weight.T + bias)` at the code's entries. The code may be over the
    pairs several times, one time after the other. What `others` hold goes into the gradients.
    """
    if torch.is_grad_enabled():
        _ = code.by_latent  # once, for the gradients of both matrices
    return code.with_acts(_Encode.apply(x, weight, bias, code, others))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, acts: Tensor, weight: Tensor, code: SparseCode, others: RowGradients | None
    ) -> Tensor:
        ctx.save_for_backward(acts, weight)
        ctx.others = others
        ctx.code = code.with_acts(code.acts[:0])
        return kernels.row_sums(weight, code, acts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        acts, weight = ctx.saved_tensors
        grad_acts, grad_weight = kernels.decoding_gradients(grad, acts, weight, ctx.code)
        if ctx.others is not None:
            ctx.others.move_to(grad_weight)
        return grad_acts, grad_weight, None, None


def decode(code: SparseCode, weight: Tensor, others: RowGradients | None = None) -> Tensor:
    """`C @ weight`: reconstructions `[N, D]` from a code over M latents and `weight` [M, D].

    What `others` hold goes into the gradient of `weight`.
    """
    return _Decode.apply(code.acts, weight, code, others)


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
