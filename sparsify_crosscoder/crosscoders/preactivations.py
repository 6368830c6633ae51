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

# Makes up for the rounding of the error columns themselves, 2**-8 for each of two factors.
_UP = 1.02
_ALIGNMENT = 32
# Few enough for a CPU's cache to hold their differences.
_ROWS_AT_ONCE = 512


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
        # <x, w> = <x', w'> + <x - x', w> + <x', w - w'> for the rounded x' and w'. More columns add
        # the bias, and what the last two can be at most (Cauchy-Schwarz), to the product.
        width = -(-(x.shape[1] + 4) // _ALIGNMENT) * _ALIGNMENT
        left, right = _widened(x, width), _widened(weight, width)
        accumulated = 2.0**-24 * width * weight.norm(dim=1)
        ones, bias_error = x.new_ones(len(x)), 2.0**-8 * _UP * bias.abs()
        _set_columns(left, x.shape[1], [ones, ones, _lost(x, left), x.norm(dim=1)])
        errors = [weight.norm(dim=1) * _UP, (_lost(weight, right) + accumulated) * _UP]
        _set_columns(right, x.shape[1], [bias, bias_error, *errors])
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
        # Half as many again usually suffice, as the bounds lie close to the values.
        width = min(k + 5 * k // 8 + 16, len(latents))
        bounds, places = self.bounds.index_select(1, latents).topk(width, dim=1)
        rows, columns = (bounds > 0).nonzero(as_tuple=True)
        exact = self.x.new_zeros(bounds.shape)
        exact[rows, columns] = self.at(rows, latents[places[rows, columns]])
        values, order = exact.topk(k, dim=1)
        places = places.gather(1, order)
        if width < len(latents):
            # Where an entry further down might still be larger, all of the row is computed.
            highest_left = bounds[:, -1].to(values.dtype) * (1 + 2.0**-7)
            unsure = ((highest_left > 0) & (values[:, -1] < highest_left)).nonzero()[:, 0]
            if len(unsure):
                rest = torch.addmm(self.bias[latents], self.x[unsure], self.weight[latents].T)
                values[unsure], places[unsure] = rest.topk(k, dim=1)
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


def _widened(matrix: Tensor, width: int) -> Tensor:
    """The matrix in bfloat16 with columns of zeros behind it, `[rows, width]`."""
    wide = torch.empty(len(matrix), width, dtype=torch.bfloat16, device=matrix.device)
    wide[:, : matrix.shape[1]] = matrix
    wide[:, matrix.shape[1] :] = 0
    return wide


def _set_columns(wide: Tensor, first: int, columns: list[Tensor]) -> None:
    for offset, column in enumerate(columns):
        wide[:, first + offset] = column


def _lost(exact: Tensor, wide: Tensor) -> Tensor:
    """L2 norm of what rounding took from each row, `[rows]`."""
    rounded = wide[:, : exact.shape[1]].split(_ROWS_AT_ONCE)
    pieces = zip(exact.split(_ROWS_AT_ONCE), rounded, strict=True)
    return torch.cat([(a - b).norm(dim=1) for a, b in pieces])
