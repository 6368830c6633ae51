"""Who serves these tensors: the one place that asks for device, dtype and what is installed."""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from . import numba_kernels, reference, triton_kernels


def start(device: torch.device) -> None:
    """Let numba serve from now on, if it is installed and `device` is a CPU: training begins."""
    if device.type == "cpu":
        numba_kernels.start()


def who_serves(operation: str, table: Tensor, *others: Tensor, products: int = 0) -> ModuleType:
    """The module that computes an operation on these tensors.

    On a GPU Triton, where it works with the dtype of `table`. On a CPU numba once it is started,
    for tensors of one dtype that it is written for, of which none needs a gradient, and at most
    `MOST_PRODUCTS` numbers to sum. Plain torch otherwise.
    """
    dtype = table.dtype
    if triton_kernels.available(table) and dtype in triton_kernels.DTYPES.get(operation, ()):
        return triton_kernels if _triton_serves(table) else reference
    if (
        not table.is_cpu
        or not numba_kernels.is_ready()
        or products > numba_kernels.MOST_PRODUCTS
        or dtype not in numba_kernels.DTYPES.get(operation, ())
        or any(other.dtype != dtype for other in others)
        or _needs_gradient(table, *others)
    ):
        return reference
    return numba_kernels


def numba_serves(operation: str, table: Tensor) -> bool:
    """Whether it is numba that computes an operation on a tensor."""
    return who_serves(operation, table) is numba_kernels


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _triton_serves(table: Tensor) -> bool:
    """Whether Triton's kernels may run and work; `SPARSIFY_CROSSCODER_TRITON=0` keeps to torch."""
    if os.environ.get("SPARSIFY_CROSSCODER_TRITON") == "0":
        return False
    return _triton_works(table.device, table.dtype)


@cache
def _triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compile on this machine and add up as torch does, tried once."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 48, generator=generator).to(device, dtype)
    rows, indices = (torch.randint(0, 8, (600,), generator=generator).to(device) for _ in "ab")
    weights = torch.rand(600, generator=generator).to(device)
    offsets = torch.tensor([0, 1, 1, 590], device=device)
    try:
        sums = triton_kernels.weighted_row_sums(table, indices, offsets, weights, torch.float32)
        dots = triton_kernels.paired_dots(table, table, rows, indices)
        kept, norms, lost = triton_kernels.rounded(table.float(), 64)
    except Exception as error:  # a missing compiler, a driver that is too old: all are reasons
        reason = f"{type(error).__name__}: {error}"
    else:
        wide = table.double()
        terms = weights.double()[:, None] * wide[indices]
        expected = torch.stack([part.sum(0) for part in terms.split([1, 0, 589, 10])])
        right = torch.allclose(sums.double(), expected, rtol=1e-3, atol=1e-2)
        right &= torch.allclose(dots.double(), (wide[rows] * wide[indices]).sum(1), atol=1e-3)
        expected = wide - kept[:, :48].double()
        right &= torch.allclose(norms.double(), wide.norm(dim=1), rtol=1e-3)
        right &= torch.allclose(lost.double(), expected.norm(dim=1), rtol=1e-3)
        right &= bool((expected.abs() <= 2.0**-7 * wide.abs()).all()) and not kept[:, 48:].any()
        if right:
            return True
        reason = "their sums differ from those of torch"
    warnings.warn(f"The Triton kernels are not used, torch's own are: {reason}", stacklevel=2)
    return False
