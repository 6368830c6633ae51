"""Kernels for the sparse training step on a CPU, compiled by numba where it is installed.

N pairs, M latents, D width, E active entries. Each function does in one call what takes torch ten,
and calls are most of a small step's time. Nothing here is differentiable. Of the same scores, torch
selects the same, to the last bit. Sums have a fixed order, so two runs on the same arguments give
the same bits.

numba is imported by `start`, when training begins; before that, and without numba, nothing serves.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int16)
# Of the sums that are made here. In larger ones calls do not count, and torch waits for memory as
# these kernels do, but with all its threads.
_MOST_PRODUCTS = 2**22

_started = False
_compiled: dict[Any, Any] = {}


def start() -> None:
    """Let the kernels serve from now on, if numba is installed.

    `SPARSIFY_CROSSCODER_NUMBA=0` keeps to torch.
    """
    global _started
    if _started:
        return
    _started = True
    if os.environ.get("SPARSIFY_CROSSCODER_NUMBA") == "0" or not importlib.util.find_spec("numba"):
        return
    try:
        import numba  # pyright: ignore[reportMissingImports]

        _compiled.update({kernel: _compile(numba, kernel) for kernel in (*_EXACT, *_SUMS)})
        _try_all()
    except Exception as error:  # of a numpy that is too new, of a missing LLVM: all are reasons
        _compiled.clear()
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"numba is not used, torch alone is: {reason}", stacklevel=2)


def _compile(numba: Any, kernel: Any) -> Any:
    options: dict[str, Any] = {"error_model": "numpy"}
    if kernel in _SUMS:
        options["fastmath"] = {"reassoc", "contract", "nsz"}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # no folder for what was compiled can be written to
        return numba.njit(**options)(kernel)


def _try_all() -> None:
    """Compile everything for float32, so that what does not work shows before it is relied on."""
    x, places = torch.ones(2, 2), torch.arange(2)
    by_latent = order_by(places, 2)
    reaching(x, x[0])
    reaching(x.to(torch.int16), x[0].to(torch.int16))
    largest(x[0], 1)
    entry_dots(x, x, places, places)
    row_sums(x, places, places, x[0], 2)
    decoding_gradients(x, x[0], x, places, by_latent)
    encoding_gradients(x[0], x, places, by_latent)
    rounded(x, 4)
    norms_by_source(x, [2])
    normalized([x, x], torch.ones(4), x[0])
    errors(x, x, x[0], [2])
    squared_distances(x, x[0], [2])
    scaled_by_source(x, x[0, :1], [2])


def serve(tensor: Tensor) -> bool:
    """Whether the kernels work on `tensor`."""
    return bool(_compiled) and tensor.device.type == "cpu" and tensor.dtype in _DTYPES


def serve_entries(table: Tensor, num_entries: int) -> bool:
    """Whether sums over so many rows of `table` [M, D] are better made here than by torch."""
    few = num_entries * table.shape[1] <= _MOST_PRODUCTS
    return few and table.is_floating_point() and serve(table)


def serve_sums(table: Tensor) -> bool:
    """Whether sums over all of `table` [N, D] are better made here than by torch."""
    return table.numel() <= _MOST_PRODUCTS and table.is_floating_point() and serve(table)


def serve_parts(parts: Sequence[Tensor], widths: Sequence[int]) -> bool:
    """Whether `normalized` is for `parts`: float32 matrices of such widths, without a gradient."""
    plain = all(part.dtype == torch.float32 and not part.requires_grad for part in parts)
    shapes = [(len(parts[0]), width) for width in widths]
    return plain and all(map(serve_sums, parts)) and [tuple(p.shape) for p in parts] == shapes


def _run(kernel: Any, *args: Any) -> Any:
    arrays = [
        arg.contiguous().numpy(force=True) if isinstance(arg, Tensor) else arg for arg in args
    ]
    return _compiled[kernel](*arrays)


def reaching(values: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the entries of `values` [N, m] that reach `cuts` [m].

    In row-major order.
    """
    rows, columns, found = _run(_reaching, values, cuts)
    return torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(found)


def largest(scores: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Places of the `budget` largest positive `scores` [E], in order, and the smallest of them.

    Of equal ones the first are kept. All places, and 0, if fewer than `budget` >= 1 are positive.
    """
    # Positive floating-point numbers are in the order of their bits.
    bits = scores.view(torch.int32 if scores.itemsize == 4 else torch.int64)
    kept, cut = _run(_largest, bits, budget)
    return torch.from_numpy(kept), torch.from_numpy(cut).view(scores.dtype)[0]


def order_by(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The stable order of `keys` [E] in 0..size-1 `[E]`, and where each begins in it `[size]`."""
    order, starts = _run(_order_by, keys, size)
    return torch.from_numpy(order), torch.from_numpy(starts)


def entry_dots(a: Tensor, b: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """`<a[rows[e]], b[indices[e]]>` for every entry, `[E]`."""
    return torch.from_numpy(_run(_entry_dots, a, b, rows, indices))


def row_sums(
    table: Tensor, rows: Tensor, indices: Tensor, weights: Tensor, num_rows: int
) -> Tensor:
    """Sum of `weights[e] * table[indices[e]]` for each of `rows` [E], `[num_rows, D]`."""
    return torch.from_numpy(_run(_row_sums, table, rows, indices, weights, num_rows))


def decoding_gradients(
    grad: Tensor, acts: Tensor, weight: Tensor, rows: Tensor, by_latent: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of `acts` [E] and `weight` [M, D] from that of `row_sums`, `[N, D]`.

    `by_latent` is the order of the entries by latent, and where each latent begins in it.
    """
    grads = _run(_decoding_gradients, grad, acts, weight, rows, *by_latent)
    return torch.from_numpy(grads[0]), torch.from_numpy(grads[1])


def encoding_gradients(
    grad: Tensor, x: Tensor, rows: Tensor, by_latent: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of the encoder's weight [M, D] and bias [M] from that of the activations, `[E]`.

    Rows beyond those of `x` [N, D] begin again with its first one.
    """
    grads = _run(_encoding_gradients, grad, x, rows, *by_latent)
    return torch.from_numpy(grads[0]), torch.from_numpy(grads[1])


def rounded(matrix: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """`matrix` [rows, D] in float32, rounded to bfloat16 with zeros behind it, `[rows, width]`.

    With the L2 norms of its rows, and those of what rounding took from them, `[rows]` each.
    """
    wide, norms, lost = map(torch.from_numpy, _run(_rounded, matrix, width))
    return wide.view(torch.bfloat16), norms, lost


def norms_by_source(table: Tensor, widths: Sequence[int]) -> Tensor:
    """L2 norm of each source's part of every row of `table` [R, D], `[S, R]`."""
    return torch.from_numpy(_run(_norms_by_source, table, _ends(widths)))


def normalized(parts: Sequence[Tensor], mean: Tensor, factors: Tensor) -> Tensor:
    """`(parts[s] - mean of s) * factors[s]` side by side, `[N, D]`, for one `[N, D_s]` per s."""
    arrays = tuple(part.contiguous().numpy() for part in parts)
    return torch.from_numpy(_run(_normalized, arrays, mean, factors))


def errors(
    target: Tensor, decoded: Tensor, bias: Tensor, widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`target - (decoded + bias)` [N, D], and the sum of squares of each source's columns [S]."""
    error, squares = _run(_errors, target, decoded, bias, _ends(widths))
    return torch.from_numpy(error), torch.from_numpy(squares)


def squared_distances(x: Tensor, centre: Tensor, widths: Sequence[int]) -> Tensor:
    """Sum over `x` [N, D] of the squared distance from `centre` [D] in each source, `[S]`."""
    return torch.from_numpy(_run(_squared_distances, x, centre, _ends(widths)))


def scaled_by_source(table: Tensor, scales: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`table` [N, D] with each source's columns times one of `scales` [S], and its sum [D]."""
    scaled, sums = _run(_scaled_by_source, table, scales, _ends(widths))
    return torch.from_numpy(scaled), torch.from_numpy(sums)


def _ends(widths: Sequence[int]) -> np.ndarray:
    return _cached_ends(tuple(widths))


@cache
def _cached_ends(widths: tuple[int, ...]) -> np.ndarray:
    return np.array(list(accumulate(widths)), np.int64)


# What is compiled. Its arguments are arrays in row-major order.


def _reaching(values, cuts):
    num_rows, width = values.shape
    total = 0
    for i in range(num_rows):
        in_row = np.int32(0)
        for j in range(width):
            in_row += values[i, j] >= cuts[j]
        total += in_row
    rows, columns = np.empty(total, np.int64), np.empty(total, np.int64)
    found = np.empty(total, values.dtype)
    flags = np.zeros(-(-width // 8) * 8, np.uint8)
    words = flags.view(np.uint64)
    one, ones = np.uint64(1), np.uint64(0x0101010101010101)
    place = 0
    for i in range(num_rows):
        for j in range(width):
            flags[j] = values[i, j] >= cuts[j]
        # Few are set: eight are passed over at a time.
        for w in range(len(words)):
            word = words[w]
            while word:
                # The bytes below the lowest that is set, added up in the highest byte.
                below = (((word & (~word + one)) - one) & ones) * ones >> np.uint64(56)
                j = 8 * w + np.int64(below)
                rows[place], columns[place], found[place] = i, j, values[i, j]
                place += 1
                word &= word - one
    return rows, columns, found


def _largest(bits, budget):
    positive = 0
    for one in bits:
        positive += one > 0
    cut, left = bits.dtype.type(0), budget
    if positive >= budget:
        # Digit by digit from the highest: those of the numbers that agree with the cut so far.
        counts = np.empty(256, np.int64)
        for shift in range(8 * bits.itemsize - 8, -8, -8):
            counts[:] = 0
            for one in bits:
                if one > 0 and (one >> shift) >> 8 == cut:
                    counts[(one >> shift) & 255] += 1
            digit = 255
            while counts[digit] < left:
                left -= counts[digit]
                digit -= 1
            cut = (cut << 8) | digit
    kept = np.empty(min(budget, positive), np.int64)
    place = 0
    for e in range(len(bits)):
        if bits[e] > cut or (bits[e] == cut and cut > 0 and left > 0):
            left -= bits[e] == cut
            kept[place] = e
            place += 1
    return kept, np.full(1, cut, bits.dtype)


def _order_by(keys, size):
    places = np.zeros(size + 1, np.int64)
    for key in keys:
        places[key + 1] += 1
    for m in range(size):
        places[m + 1] += places[m]
    starts = places[:size].copy()
    order = np.empty(len(keys), np.int64)
    for e in range(len(keys)):
        order[places[keys[e]]] = e
        places[keys[e]] += 1
    return order, starts


def _entry_dots(a, b, rows, indices):
    dots = np.empty(len(rows), a.dtype)
    for e in range(len(rows)):
        row, index, total = rows[e], indices[e], a.dtype.type(0)
        for d in range(a.shape[1]):
            total += a[row, d] * b[index, d]
        dots[e] = total
    return dots


def _normalized(parts, mean, factors):
    result = np.empty((len(parts[0]), len(mean)), mean.dtype)
    begin = 0
    for s in range(len(parts)):
        part, factor = parts[s], factors[s]
        end = begin + part.shape[1]
        centre = mean[begin:end]
        for i in range(len(result)):
            row = result[i, begin:end]
            for d in range(part.shape[1]):
                row[d] = (part[i, d] - centre[d]) * factor
        begin = end
    return result


def _rounded(matrix, width):
    num_rows, read = matrix.shape
    bits, wide = matrix.view(np.uint32), np.zeros((num_rows, width), np.int16)
    norms, lost = np.empty(num_rows, matrix.dtype), np.empty(num_rows, matrix.dtype)
    kept = np.empty(read, np.uint32)
    rounded = kept.view(matrix.dtype)
    for i in range(num_rows):
        for d in range(read):
            # To the nearest, and of two that are as near to the even one.
            even = (bits[i, d] >> np.uint32(16)) & np.uint32(1)
            kept[d] = (bits[i, d] + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
            wide[i, d] = kept[d] >> np.uint32(16)
        squares, lost_squares = matrix.dtype.type(0), matrix.dtype.type(0)
        for d in range(read):
            difference = matrix[i, d] - rounded[d]
            squares += matrix[i, d] * matrix[i, d]
            lost_squares += difference * difference
        norms[i], lost[i] = np.sqrt(squares), np.sqrt(lost_squares)
    return wide, norms, lost


def _norms_by_source(table, ends):
    norms = np.empty((len(ends), len(table)), table.dtype)
    for r in range(len(table)):
        begin = 0
        for s in range(len(ends)):
            squares = table.dtype.type(0)
            for d in range(begin, ends[s]):
                squares += table[r, d] * table[r, d]
            norms[s, r] = np.sqrt(squares)
            begin = ends[s]
    return norms


def _errors(target, decoded, bias, ends):
    num_rows, width = target.shape
    error = np.empty_like(target)
    by_column = np.zeros(width)
    for i in range(num_rows):
        for d in range(width):
            error[i, d] = target[i, d] - (decoded[i, d] + bias[d])
        for d in range(width):
            by_column[d] += np.float64(error[i, d]) * np.float64(error[i, d])
    squares = np.empty(len(ends), target.dtype)
    begin = 0
    for s in range(len(ends)):
        squares[s] = by_column[begin : ends[s]].sum()
        begin = ends[s]
    return error, squares


def _squared_distances(x, centre, ends):
    by_column = np.zeros(x.shape[1])
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            distance = np.float64(x[i, d] - centre[d])
            by_column[d] += distance * distance
    squares = np.empty(len(ends), x.dtype)
    begin = 0
    for s in range(len(ends)):
        squares[s] = by_column[begin : ends[s]].sum()
        begin = ends[s]
    return squares


def _scaled_by_source(table, scales, ends):
    num_rows, width = table.shape
    scaled = np.empty_like(table)
    sums, by_column = np.zeros(width), np.empty(width, table.dtype)
    begin = 0
    for s in range(len(ends)):
        by_column[begin : ends[s]] = scales[s]
        begin = ends[s]
    for i in range(num_rows):
        for d in range(width):
            scaled[i, d] = table[i, d] * by_column[d]
        for d in range(width):
            sums[d] += np.float64(scaled[i, d])
    return scaled, sums.astype(table.dtype)


def _row_sums(table, rows, indices, weights, num_rows):
    sums = np.zeros((num_rows, table.shape[1]), table.dtype)
    for e in range(len(rows)):
        row, index, weight = rows[e], indices[e], weights[e]
        for d in range(table.shape[1]):
            sums[row, d] += weight * table[index, d]
    return sums


def _decoding_gradients(grad, acts, weight, rows, order, starts):
    grad_acts, grad_weight = np.empty_like(acts), np.zeros_like(weight)
    for m in range(len(starts)):
        end = starts[m + 1] if m + 1 < len(starts) else len(order)
        for place in range(starts[m], end):
            e = order[place]
            row, act, total = rows[e], acts[e], acts.dtype.type(0)
            for d in range(grad.shape[1]):
                total += grad[row, d] * weight[m, d]
                grad_weight[m, d] += act * grad[row, d]
            grad_acts[e] = total
    return grad_acts, grad_weight


def _encoding_gradients(grad, x, rows, order, starts):
    num_pairs, width = x.shape
    grad_weight, grad_bias = np.zeros((len(starts), width), x.dtype), np.zeros(len(starts), x.dtype)
    for m in range(len(starts)):
        end = starts[m + 1] if m + 1 < len(starts) else len(order)
        for place in range(starts[m], end):
            e = order[place]
            row, one = rows[e] % num_pairs, grad[e]
            grad_bias[m] += one
            for d in range(width):
                grad_weight[m, d] += one * x[row, d]
    return grad_weight, grad_bias


_EXACT = (_reaching, _largest, _order_by, _normalized)
_SUMS = (
    _entry_dots,
    _row_sums,
    _decoding_gradients,
    _encoding_gradients,
    _rounded,
    _norms_by_source,
    _errors,
    _squared_distances,
    _scaled_by_source,
)
