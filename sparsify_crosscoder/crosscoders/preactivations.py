"""The encoder's product with a whole block, exact or as an upper bound in bfloat16.

Only some thousandths of the pre-activations are selected, and only those have to be exact. The
bounded form multiplies in bfloat16, which is several times faster where the hardware has it, adds
what rounding can have taken away, and computes in full precision only the entries whose bound
reaches the cut. What is selected is the same.

N pairs, m latents of the block, D the width that it reads, E entries.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .sparse_ops import entry_dots

# Rounding to 8 significant bits changes a number by at most 2**-8 of it, so <x, w> by at most
# 2**-7 |x| |w| (Cauchy-Schwarz). The rest is for the rounding of both norms and of the sums.
_ROUNDING = 2.0**-7 * 1.05
_ALIGNMENT = 32


class Preactivations(Protocol):
    """`x @ weight.T + bias` of one block, `[N, m]`."""

    num_pairs: int

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and latents of all entries that may reach `cuts` [m] > 0, in row-major order."""
        ...

    def at(self, rows: Tensor, latents: Tensor) -> Tensor:
        """The exact pre-activations of some entries, `[E]`."""
        ...

    def strongest(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest entries of every row among some latents: values and latents, `[N, k]`.

        Values that are not positive are any number that is not. k is at most `len(latents)`.
        """
        ...

    def sample(self, stride: int) -> Tensor:
        """Every `stride`-th row, approximately, `[n, m]`."""
        ...


class ExactPreactivations:
    """All pre-activations in the dtype of the weights."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor):
        self.num_pairs = len(x)
        self.values = torch.addmm(bias, x, weight.T)

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor]:
        rows, latents = (self.values >= cuts).nonzero(as_tuple=True)
        return rows, latents

    def at(self, rows: Tensor, latents: Tensor) -> Tensor:
        return self.values[rows, latents]

    def strongest(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, places = self.values[:, latents].topk(k, dim=1)
        return values, latents[places]

    def sample(self, stride: int) -> Tensor:
        return self.values[::stride]


class BoundedPreactivations:
    """Upper bounds of the pre-activations in bfloat16, and exact ones where they are asked for."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor):
        self.num_pairs = len(x)
        self.x, self.weight, self.bias = x, weight, bias
        # Two more columns add the bias and the bound on the rounding error to the product.
        width = -(-(x.shape[1] + 2) // _ALIGNMENT) * _ALIGNMENT
        root = x.shape[1] ** 0.5
        error = _ROUNDING * (weight.norm(dim=1) + bias.abs() / root)
        left = _with_columns(x, [x.new_ones(len(x)), x.norm(dim=1).clamp_min(root)], width)
        right = _with_columns(weight, [bias, error], width)
        self.bounds = left @ right.T

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor]:
        # The product itself was rounded as well. Positive bfloat16 order as their bits do.
        lowered = (cuts * (1 - 2.0**-7)).to(torch.bfloat16)
        above = self.bounds.view(torch.int16) >= lowered.view(torch.int16)
        rows, latents = above.nonzero(as_tuple=True)
        return rows, latents

    def at(self, rows: Tensor, latents: Tensor) -> Tensor:
        return entry_dots(self.x, self.weight, rows, latents) + self.bias[latents]

    def strongest(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        # So many are asked for that bounds would have to be followed up for most of the row.
        values = torch.addmm(self.bias[latents], self.x, self.weight[latents].T)
        values, places = values.topk(k, dim=1)
        return values, latents[places]

    def sample(self, stride: int) -> Tensor:
        return self.bounds[::stride].to(self.x.dtype)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def _with_columns(matrix: Tensor, columns: list[Tensor], width: int) -> Tensor:
    """`[matrix | columns | zeros]` in bfloat16, `[rows, width]`."""
    wide = torch.empty(len(matrix), width, dtype=torch.bfloat16, device=matrix.device)
    size = matrix.shape[1]
    wide[:, :size] = matrix
    for offset, column in enumerate(columns):
        wide[:, size + offset] = column
    wide[:, size + len(columns) :] = 0
    return wide
