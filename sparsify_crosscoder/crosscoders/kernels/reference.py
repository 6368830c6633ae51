"""The operations in plain torch, to be read and compared with; on any device, of any dtype.

Their meaning is said in the package's `__init__`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch_topk import select_largest
from .places import Places, column_segments

# Few enough for a CPU's cache to hold their differences; a GPU is slower by launches.
_ROWS_AT_ONCE, _ROWS_AT_ONCE_ON_A_GPU = 512, 8192


def order_by(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return torch.argsort(keys, stable=True), starts_of(keys, size)


def starts_of(keys: Tensor, size: int) -> Tensor:
    counts = torch.bincount(keys, minlength=size)
    return counts.cumsum(0) - counts


def reaching(values: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = true_entries(values >= cuts)
    return rows, columns, values[rows, columns]


def true_entries(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of `mask` [N, m] that are true, in row-major order."""
    width = mask.shape[1]
    if mask.device.type != "cpu" or width % 8:
        rows, columns = mask.nonzero(as_tuple=True)
        return rows.contiguous(), columns.contiguous()
    # Few are true: as 64-bit words, eight are passed over at a time.
    eights = mask.view(-1, 8)
    words = eights.view(torch.int64).nonzero()[:, 0]
    inside = eights[words].nonzero()
    places = words[inside[:, 0]] * 8 + inside[:, 1]
    return places // width, places % width


def largest(scores: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    mask, cut = select_largest(scores, budget)
    return mask.nonzero()[:, 0], cut


def segment_sums(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    if len(indices) == 0:
        return table.new_zeros(len(offsets), table.shape[1])
    weights = weights.to(table.dtype)
    return F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)


def row_sums(table: Tensor, places: Places, weights: Tensor) -> Tensor:
    return segment_sums(table, places.indices, places.offsets, weights)


def entry_dots(a: Tensor, b: Tensor, places: Places) -> Tensor:
    if len(places.rows) == 0:
        return a.new_zeros(0)
    # The columns are walked in order, so that each row of `b`, the large table, is read once. The
    # backward of embedding_bag's per-sample weights is this product; bag n of it is a[n].
    order, _ = places.by_latent
    rows, indices = places.rows[order], places.indices[order]
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        a.contiguous(), b, indices, rows.new_zeros(1), rows, 0, -1
    )
    return torch.empty_like(dots).index_copy_(0, order, dots)


def decoding_gradients(
    grad: Tensor, acts: Tensor, weight: Tensor, places: Places
) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()
    grad_acts = entry_dots(grad, weight, places).to(acts.dtype)
    return grad_acts, segment_sums(grad, *column_segments(places, acts, len(grad)))


def encoding_gradients(grad: Tensor, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    grad_weight = segment_sums(x, *column_segments(places, grad, len(x)))
    return grad_weight, column_totals(grad, places)


def column_totals(weights: Tensor, places: Places) -> Tensor:
    """Sum of the `weights` [E] of each column's entries, `[M]`."""
    return weights.new_zeros(places.shape[1]).index_add_(0, places.indices, weights)


def rounded(matrix: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.empty(len(matrix), width, dtype=torch.bfloat16, device=matrix.device)
    wide[:, : matrix.shape[1]] = matrix
    wide[:, matrix.shape[1] :] = 0
    rows = _ROWS_AT_ONCE if matrix.is_cpu else _ROWS_AT_ONCE_ON_A_GPU
    kept = wide[:, : matrix.shape[1]].split(rows)
    pieces = zip(matrix.split(rows), kept, strict=True)
    lost = torch.cat([(a - b).norm(dim=1) for a, b in pieces])
    return wide, matrix.norm(dim=1), lost


def norms_by_source(table: Tensor, widths: Sequence[int]) -> Tensor:
    return torch.stack([part.norm(dim=1) for part in table.detach().split(list(widths), 1)])


def normalized(
    parts: Sequence[Tensor], mean: Tensor, factors: Tensor, widths: Sequence[int]
) -> Tensor:
    # float64 input keeps its precision: bfloat16 is widened by the float32 mean.
    x = parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)
    return (x - mean).mul_(by_column(factors, widths))


def by_column(numbers: Tensor, widths: Sequence[int]) -> Tensor:
    """One of the `numbers` [S] for every column of its source, `[D]`."""
    return torch.cat([one.expand(width) for one, width in zip(numbers, widths, strict=True)])


def errors(
    target: Tensor, decoded: Tensor, bias: Tensor, widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    error = target - (decoded + bias)
    parts = error.split(list(widths), 1)
    return error, torch.stack([part.square().sum() for part in parts])


def squared_distances(x: Tensor, centre: Tensor, widths: Sequence[int]) -> Tensor:
    by_source = (x - centre).pow(2).sum(0).split(list(widths))
    return torch.stack([part.sum() for part in by_source])


def scaled_by_source(table: Tensor, scales: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    scaled = table * by_column(scales, widths)
    return scaled, scaled.sum(0)
