"""The operations that training spends its time in, each by whoever is fastest at it.

N pairs, M latents, D width, S sources, E active entries. What an operation means stands here;
`reference` writes all of them in plain torch, and `numba_kernels` and `triton_kernels` some of
them anew, under the same names and with the same arguments:

| operation                                    | torch | numba (CPU) | Triton (GPU) |
|----------------------------------------------|-------|-------------|--------------|
| `order_by` `starts_of` `reaching` `largest`  | x     | x           |              |
| `normalized` `norms_by_source`               | x     | x           |              |
| `errors` `squared_distances`                 | x     | x           |              |
| `scaled_by_source`                           | x     | x           |              |
| `row_sums` `entry_dots` `rounded`            | x     | x           | x            |
| `decoding_gradients` `encoding_gradients`    | x     | x           | x            |
| `segment_sums`                               | x     |             | x            |

Nothing here is differentiable, except where plain torch is. numba's versions of the first row and
of `normalized` give the bits of torch. Every sum has a fixed order, so two runs on the same
arguments give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .places import Places, column_segments
from .serving import numba_serves, start, who_serves

__all__ = [
    "Places",
    "column_sums",
    "comparable",
    "decoding_gradients",
    "encoding_gradients",
    "entry_dots",
    "errors",
    "largest",
    "normalized",
    "norms_by_source",
    "numba_serves",
    "order_by",
    "reaching",
    "rounded",
    "row_sums",
    "scaled_by_source",
    "segment_sums",
    "squared_distances",
    "start",
    "starts_of",
    "who_serves",
]


def order_by(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The stable order of `keys` [E] in 0..size-1 `[E]`, and where each begins in it `[size]`."""
    return who_serves("order_by", keys).order_by(keys, size)


def starts_of(keys: Tensor, size: int) -> Tensor:
    """Where each of 0..size-1 begins among sorted `keys` [E], `[size]`."""
    return who_serves("starts_of", keys).starts_of(keys, size)


def reaching(values: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the entries of `values` [N, m] that reach `cuts` [m] >= 0.

    In row-major order.
    """
    plain, plain_cuts = comparable(values), comparable(cuts)
    rows, columns, found = who_serves("reaching", plain, plain_cuts).reaching(plain, plain_cuts)
    return rows, columns, found.view(values.dtype)


def comparable(values: Tensor) -> Tensor:
    """The same, faster to compare with numbers >= 0: bfloat16 order as their bits do."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values


def largest(scores: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Places of the `budget` largest positive `scores` [E], in order, and the smallest of them.

    Of equal ones the first are kept. All places, and 0, if fewer than `budget` >= 1 are positive.
    """
    return who_serves("largest", scores).largest(scores, budget)


def segment_sums(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of `table` [R, D], one per segment that begins at `offsets` [B].

    Entry e is `weights[e] * table[indices[e]]`. Returns `[B, D]`.
    """
    by = who_serves("segment_sums", table)
    return by.segment_sums(table, indices, offsets, weights)


def column_sums(table: Tensor, places: Places, weights: Tensor) -> Tensor:
    """`C^T @ table` for the matrix C that holds `weights` [E] at its places: `[M, D]`.

    With more rows than `table` [N, D] has, C begins again with the first one.
    """
    return segment_sums(table, *column_segments(places, weights, len(table)))


def row_sums(table: Tensor, places: Places, weights: Tensor) -> Tensor:
    """`C @ table` for the matrix C that holds `weights` [E] at its places, `[N, D]`."""
    products = len(weights) * table.shape[1]
    return who_serves("row_sums", table, weights, products=products).row_sums(
        table, places, weights
    )


def entry_dots(a: Tensor, b: Tensor, places: Places) -> Tensor:
    """`<a[n], b[m]>` for every place (n, m), `[E]`, from `a` [N, D] and `b` [M, D].

    No `[E, D]` tensor is made.
    """
    products = len(places.rows) * b.shape[1]
    return who_serves("entry_dots", b, a, products=products).entry_dots(a, b, places)


def decoding_gradients(
    grad: Tensor, acts: Tensor, weight: Tensor, places: Places
) -> tuple[Tensor, Tensor]:
    """Gradients of `acts` [E] and `weight` [M, D] from that of `row_sums`, `grad` [N, D]."""
    products = len(acts) * weight.shape[1]
    by = who_serves("decoding_gradients", weight, acts, grad, products=products)
    return by.decoding_gradients(grad, acts, weight, places)


def encoding_gradients(grad: Tensor, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """Gradients of the encoder's weight [M, D] and bias [M] from that of the activations, `[E]`.

    Rows beyond those of `x` [N, D] begin again with its first one.
    """
    products = len(grad) * x.shape[1]
    by = who_serves("encoding_gradients", x, grad, products=products)
    return by.encoding_gradients(grad, x, places)


def rounded(matrices: Sequence[Tensor], width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each of some `[rows, D]` rounded to bfloat16 with zeros behind it, `[rows, width]`.

    With the L2 norms of its rows, and those of what rounding took from them, `[rows]` each.
    """
    by = who_serves("rounded", *matrices, products=max(m.numel() for m in matrices))
    return [by.rounded(matrix, width) for matrix in matrices]


def norms_by_source(table: Tensor, widths: Sequence[int]) -> Tensor:
    """L2 norm of each source's part of every row of `table` [R, D], `[S, R]`."""
    by = who_serves("norms_by_source", table, products=table.numel())
    return by.norms_by_source(table, widths)


def normalized(
    parts: Sequence[Tensor], mean: Tensor, factors: Tensor, widths: Sequence[int]
) -> Tensor:
    """`(x - mean) * factor` of each source's columns, `[..., D]`.

    `parts` are x, in one piece or in several to be laid side by side.
    """
    fits = [tuple(part.shape) for part in parts] == [(len(parts[0]), width) for width in widths]
    products = max(part.numel() for part in parts)
    by = who_serves("normalized", *parts, products=products) if fits else reference
    return by.normalized(parts, mean, factors, widths)


def errors(
    target: Tensor, decoded: Tensor, bias: Tensor, widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`target - (decoded + bias)` [N, D], and the sum of squares of each source's columns [S]."""
    by = who_serves("errors", target, decoded, bias, products=target.numel())
    return by.errors(target, decoded, bias, widths)


def squared_distances(x: Tensor, centre: Tensor, widths: Sequence[int]) -> Tensor:
    """Sum over `x` [N, D] of the squared distance from `centre` [D] in each source, `[S]`."""
    by = who_serves("squared_distances", x, centre, products=x.numel())
    return by.squared_distances(x, centre, widths)


def scaled_by_source(table: Tensor, scales: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`table` [N, D] with each source's columns times one of `scales` [S], and its sum [D]."""
    by = who_serves("scaled_by_source", table, products=table.numel())
    return by.scaled_by_source(table, scales, widths)
