"""The encoder's product with a whole block, exact or as an upper bound in bfloat16.

Only some thousandths of the pre-activations are selected, and only those have to be exact. The
bounded form multiplies in bfloat16, which is several times faster where the hardware has it, adds
what rounding can have taken away, and computes in full precision only the entries whose bound
reaches the cut. What is selected is the same.

N pairs, m latents of the block, D the width that it reads, E entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .codes import SparseCode
from .kernels import comparable
from .kernels.reference import true_entries

# Makes up for the rounding of the error columns themselves, 2**-8 for each of two factors.
_UP = 1.02
_ALIGNMENT = 32
_PIECE_BYTES = 4 * 2**20
# Of multiplications that take no longer than what bounds need around theirs.
_CHEAP_PRODUCT = 2**23
_SAMPLED_COLUMNS = 1024
# So many standard deviations of what a sample can be off by.
_CAUTION = 2.5


class Preactivations(Protocol):
    """`x @ weight.T + bias` of one block, `[N, m]`."""

    num_pairs: int

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, latents and exact values of all entries that may reach `cuts` [m] > 0.

        In row-major order.
        """
        ...

    def strongest(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest entries of every row among some latents: values and latents, `[N, k]`.

        Values that are not positive are any number that is not. k is at most `len(latents)`.
        """
        ...

    def sample(self, stride: int) -> Tensor:
        """Every `stride`-th row, approximately, `[n, m]`."""
        ...


class Product:
    """`left @ right.T + bias`, `[N, m]`, made in pieces of columns where it is read once only.

    On a CPU a piece is small enough to be read from its cache and to lie in memory that was used
    before. Elsewhere, and if it is `kept`, the product is made as a whole.
    """

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None, kept: bool):
        self.left, self.right, self.bias = left, right, bias
        bytes_per_column = max(len(left), 1) * left.element_size()
        self.at_once = max(_PIECE_BYTES // bytes_per_column // 64 * 64, 512)
        self._whole = None
        if kept or left.device.type != "cpu":
            self._whole = self.multiply(slice(0, len(left)), slice(0, len(right)))

    def multiply(self, rows: slice, columns: slice) -> Tensor:
        """Some rows and columns of the product."""
        left, right = self.left[rows], self.right[columns]
        if self.bias is None:
            return left @ right.T
        return torch.addmm(self.bias[columns], left, right.T)

    @property
    def whole(self) -> Tensor:
        """All of the product."""
        everything = slice(0, len(self.left)), slice(0, len(self.right))
        return self.multiply(*everything) if self._whole is None else self._whole

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values of the entries that reach `cuts` [m] > 0, in row-major order."""
        size = self.at_once
        if self.left.device.type != "cpu" or size >= len(self.right):
            return kernels.reaching(self.whole, cuts)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(self.right), size):
            columns = slice(start, start + size)
            if self._whole is None:
                piece = self.multiply(slice(0, len(self.left)), columns)
            else:
                piece = self._whole[:, columns]
            rows, inside, chosen = kernels.reaching(piece, cuts[columns])
            found.append((rows, inside + start if start else inside, chosen))
        joined = [torch.cat(parts) for parts in zip(*found, strict=True)]
        order, _ = kernels.order_by(joined[0], len(self.left))
        rows, columns, chosen = (part[order] for part in joined)
        return rows, columns, chosen


class ExactPreactivations:
    """All pre-activations in the dtype of the weights; `kept` if more than one look is likely."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, kept: bool = False):
        self.num_pairs = len(x)
        self.product = Product(x, weight, bias, kept)

    @property
    def values(self) -> Tensor:
        """All of them, `[N, m]`."""
        return self.product.whole

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.product.reaching(cuts)

    def strongest(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values = self.values
        return _strongest(values, latents, k, lambda *at: values[at], lambda cuts: cuts)

    def sample(self, stride: int) -> Tensor:
        return self.product.multiply(slice(None, None, stride), slice(None))


class BoundedPreactivations:
    """Upper bounds of the pre-activations in bfloat16, and exact ones where they are asked for."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, kept: bool = False):
        self.num_pairs = len(x)
        self.x, self.weight, self.bias = x, weight, bias
        # <x, w> = <x', w'> + <x - x', w> + <x', w - w'> for the rounded x' and w'. More columns add
        # the bias, and what the last two can be at most (Cauchy-Schwarz), to the product.
        width = -(-(x.shape[1] + 4) // _ALIGNMENT) * _ALIGNMENT
        rounded = kernels.rounded([x, weight], width)
        (left, x_norms, x_lost), (right, norms, lost) = rounded
        ones, bias_error = x.new_ones(len(x)), 2.0**-8 * _UP * bias.abs()
        accumulated = 2.0**-24 * width * norms
        last = slice(x.shape[1], x.shape[1] + 4)
        left[:, last] = torch.stack([ones, ones, x_lost, x_norms], 1)
        errors = [norms * _UP, (lost + accumulated) * _UP]
        right[:, last] = torch.stack([bias, bias_error, *errors], 1)
        self.product = Product(left, right, None, kept)

    @property
    def bounds(self) -> Tensor:
        """All upper bounds, rounded to bfloat16, `[N, m]`."""
        return self.product.whole

    def reaching(self, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, latents, _ = self.product.reaching(_lowered(cuts))
        return rows, latents, self.at(rows, latents)

    def at(self, rows: Tensor, latents: Tensor) -> Tensor:
        """The exact pre-activations of some entries, `[E]`."""
        shape = (self.num_pairs, len(self.weight))
        places = SparseCode(self.x[:0], latents, rows, shape)
        dots = kernels.entry_dots(self.x, self.weight, places)
        return dots + self.bias.index_select(0, latents)

    def strongest(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return _strongest(self.bounds, latents, k, self.at, _lowered)

    def sample(self, stride: int) -> Tensor:
        return self.product.multiply(slice(None, None, stride), slice(None)).to(self.x.dtype)


def screened(
    x: Tensor, weight: Tensor, bias: Tensor, kept: bool = False
) -> BoundedPreactivations | ExactPreactivations:
    """Bounds, or exact pre-activations where the kernels of a CPU serve and these cost no more."""
    cheap = x.numel() * len(weight) <= _CHEAP_PRODUCT and kernels.numba_serves("reaching", x)
    return (ExactPreactivations if cheap else BoundedPreactivations)(x, weight, bias, kept)


def _lowered(cuts: Tensor) -> Tensor:
    """Cuts for bounds that are in bfloat16 themselves."""
    return (cuts * (1 - 2.0**-7)).to(torch.bfloat16)


def _strongest(
    values: Tensor,
    latents: Tensor,
    k: int,
    exact: Callable[[Tensor, Tensor], Tensor],
    lowered: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """See `Preactivations.strongest`; no entry is above its one in `values` [N, m].

    First come the entries that exceed a likely level, then all others that may exceed the k-th of
    these.
    """
    values = values.index_select(1, latents)
    levels = _sampled_levels(values, k)
    likely = comparable(values) > comparable(levels)[:, None]

    def found(mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = true_entries(mask)
        columns = latents[columns]
        return _side_by_side(exact(rows, columns), columns, rows, len(mask))

    acts, where = found(likely)
    if acts.shape[1] < k:
        acts, where = F.pad(acts, (0, k - acts.shape[1])), F.pad(where, (0, k - where.shape[1]))
    acts, order = acts.topk(k, dim=1, sorted=False)
    where = where.gather(1, order)
    cuts = lowered(acts.amin(1))
    more, more_where = found((comparable(values) > comparable(cuts)[:, None]) & ~likely)
    if more.shape[1]:
        acts, order = torch.cat([acts, more], 1).topk(k, dim=1, sorted=False)
        where = torch.cat([where, more_where], 1).gather(1, order)
    return acts, where


def _sampled_levels(values: Tensor, k: int) -> Tensor:
    """For every row of `values` [N, m] a level that k of its entries most likely exceed, `[N]`.

    A sample of columns tells; 0, which all positive entries exceed, where it would be too small.
    """
    stride = max(values.shape[1] // _SAMPLED_COLUMNS, 1)
    expected = k / stride
    rank = round(expected + _CAUTION * expected**0.5) + 1
    sample = values[:, ::stride]
    if stride == 1 or rank >= sample.shape[1]:
        return values.new_zeros(len(values))
    return sample.topk(rank, dim=1, sorted=False).values.amin(1).clamp_min(0)


def _side_by_side(
    values: Tensor, columns: Tensor, rows: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Entries `[E]`, sorted by row, as matrices of values and columns, `[num_rows, longest]`.

    Behind a row's entries are zeros.
    """
    counts = torch.bincount(rows, minlength=num_rows)
    width = int(counts.max()) if num_rows else 0
    places = torch.arange(len(rows), device=rows.device)
    places += rows * width - (counts.cumsum(0) - counts)[rows]
    acts = values.new_zeros(num_rows * width).index_copy_(0, places, values)
    found = columns.new_zeros(num_rows * width).index_copy_(0, places, columns)
    return acts.view(num_rows, width), found.view(num_rows, width)
