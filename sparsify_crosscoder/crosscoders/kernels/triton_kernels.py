"""The operations on a GPU, by Triton.

Two runs on the same arguments give the same bits: every sum has a fixed order, without atomics,
and nothing is autotuned, since another tile would be another order of summation.

All of it waits for memory. What each function moves at the paper's size (N = 2,048, M = 131,072,
D = 8,192, E = 200 N), and how long an H200 needs at least for that (4.8 TB/s; arithmetic, not
measured), with operands in bf16 and in fp32:

| function, use | bf16 | fp32 |
|---|---|---|
| `weighted_row_sums`, decode or gradient to x | 6.9 GB, 1.4 ms | 13.6 GB, 2.8 ms |
| `weighted_row_sums`, gradient to a weight matrix | 2.3 GB, 0.5 ms | 4.5 GB, 0.9 ms |
| `paired_dots` | 6.8 GB, 1.4 ms | 13.5 GB, 2.8 ms |
| `rounded`, a weight matrix | | 6.4 GB, 1.3 ms |

A row of a weight matrix counts each time it is used, E * D elements in all (6.7 or 13.4 GB); the
L2 cache may spare some of that. For a weight gradient the N rows of the table stay in L2, which
then hands out those E * D elements and is the likelier limit. What reads E * D elements grows with
k: five times as much at k = 1,000, where training begins.
"""

# The annotations of the kernels are Triton's, and name values rather than types.
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from . import reference
from .places import Places, column_segments

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OPERATIONS = (
    "segment_sums",
    "row_sums",
    "entry_dots",
    "decoding_gradients",
    "encoding_gradients",
)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    **{name: _DTYPES for name in _OPERATIONS},
    "rounded": (torch.float32,),
}
"""What this module is for: operations, and the dtypes of the table that they read."""

# Entries that one program adds up at most; segments are cut at its multiples. A program of 256
# entries lasts tens of microseconds, so the last ones to finish cost a few percent of a launch,
# and the partial sums are 1/256 of the E * D elements read.
PIECE = 256

# triton.language, from the first launch on: importing this module must not import triton. Until
# then the kernels below are plain functions; compiled, they find `tl` among the module's globals.
tl: Any = None


@functools.cache
def _compiled(kernel: Any) -> Any:
    global tl
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    # These change from batch to batch, and would compile anew whenever 16 divides them.
    counts = ["num_segments", "num_entries"]
    return triton.jit(kernel, do_not_specialize=counts)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    with torch.cuda.device_of(args[0]):
        # Said here because versions of Triton differ in it, and so would the bits.
        _compiled(kernel)[grid](*args, enable_fp_fusion=True, **options)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def available(tensor: Tensor) -> bool:
    """Whether the kernels can run on `tensor`: its device, its type, and triton's presence."""
    return (
        tensor.is_cuda
        and tensor.dtype in _DTYPES
        and _has_triton()
        and torch.cuda.get_device_capability(tensor.device) >= (8, 0)
    )


def _unit_columns(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _warp_load(dtype: torch.dtype) -> int:
    """Elements that a warp of 32 threads loads at 16 bytes a thread, the widest load there is."""
    return 512 // dtype.itemsize


def _sum_rows(
    table,
    indices,
    weights,
    offsets,
    continued,
    partials,
    out,
    num_segments,
    num_entries,
    width,
    table_stride,
    PARTIAL: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    if PARTIAL:
        segment = tl.load(continued + program)
        begin = (program + 1) * PIECE
    else:
        segment = program
        begin = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1, mask=segment + 1 < num_segments, other=num_entries)
    stop = tl.minimum(end, (begin // PIECE + 1) * PIECE)

    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    entries = begin + tl.arange(0, BLOCK_E)
    valid = entries < stop
    rows = tl.load(indices + entries, mask=valid, other=0).to(tl.int64)
    scales = tl.load(weights + entries, mask=valid, other=0).to(tl.float32)
    places = rows[:, None] * table_stride + columns[None, :]
    tile = tl.load(table + places, mask=valid[:, None] & inside[None, :], other=0)
    for first in range(begin + BLOCK_E, stop, BLOCK_E):
        # Carried over, so that these rows are under way while the last ones are added.
        entries = first + tl.arange(0, BLOCK_E)
        valid = entries < stop
        rows = tl.load(indices + entries, mask=valid, other=0).to(tl.int64)
        next_scales = tl.load(weights + entries, mask=valid, other=0).to(tl.float32)
        places = rows[:, None] * table_stride + columns[None, :]
        next_tile = tl.load(table + places, mask=valid[:, None] & inside[None, :], other=0)
        total += tl.sum(tile.to(tl.float32) * scales[:, None], axis=0)
        tile = next_tile
        scales = next_scales
    total += tl.sum(tile.to(tl.float32) * scales[:, None], axis=0)

    if PARTIAL:
        tl.store(partials + program * width + columns, total, mask=inside)
    else:
        for piece in range(begin // PIECE, (end - 1) // PIECE):
            total += tl.load(partials + piece * width + columns, mask=inside, other=0)
        tl.store(out + segment * width + columns, total.to(out.dtype.element_ty), mask=inside)


def weighted_row_sums(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum `weights[e] * table[indices[e]]` over the entries e of each segment, in fp32.

    `table` [R, D]; `indices`, `weights` [E]; `offsets` [B] says where each segment begins, from 0
    ascending, and the last ends at E. Returns `[B, D]` in `dtype`, or else in the table's.
    """
    table = _unit_columns(table)
    indices, offsets, weights = indices.contiguous(), offsets.contiguous(), weights.contiguous()
    num_entries, num_segments, width = len(indices), len(offsets), table.shape[1]
    out = table.new_empty(num_segments, width, dtype=dtype or table.dtype)
    if out.numel() == 0:
        return out
    # Some latents and pairs have many times the entries of others, so segments are cut at every
    # multiple of PIECE. At most one segment runs on over each cut, so that the number of the cut
    # is the place of the partial sum that begins there: the host need not know how many there are.
    cuts = torch.arange(PIECE, max(num_entries, PIECE), PIECE, device=offsets.device)
    continued = torch.searchsorted(offsets, cuts, right=True) - 1
    partials = table.new_empty(len(cuts), width, dtype=torch.float32)
    for partial in (True, False):
        programs = len(cuts) if partial else num_segments
        if programs == 0:
            continue
        # A tile of 16 KB, so that each of 128 threads has 128 bytes under way. Where segments are
        # short it holds fewer entries and more of each row: fewer programs to start, and less
        # arithmetic on entries that a segment does not have.
        long = partial or num_entries >= 16 * num_segments
        block = (4096 if long else 8192) // table.dtype.itemsize
        block = min(block, 1 << (width - 1).bit_length())
        # Blocks of columns vary slowest, so that a small table's block stays in the L2 cache.
        _launch(
            _sum_rows,
            (programs, -(-width // block)),
            table,
            indices,
            weights,
            offsets,
            continued,
            partials,
            out,
            num_segments,
            num_entries,
            width,
            table.stride(0),
            PARTIAL=partial,
            PIECE=PIECE,
            BLOCK_E=4 if long else 2,
            BLOCK_D=block,
            num_warps=min(4, max(1, block // _warp_load(table.dtype))),
        )
    return out


def _dot_entries(
    a,
    b,
    rows,
    indices,
    out,
    num_entries,
    width,
    a_stride,
    b_stride,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LANES: tl.constexpr,
):
    entries = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    # The last entry once more instead of none: cheaper than a mask on every load.
    entries = tl.minimum(entries, num_entries - 1)
    a_rows = a + tl.load(rows + entries).to(tl.int64)[:, None] * a_stride
    b_rows = b + tl.load(indices + entries).to(tl.int64)[:, None] * b_stride
    total = tl.zeros([BLOCK_E, LANES], dtype=tl.float32)
    for first in range(0, width, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)[None, :]
        inside = columns < width
        left = tl.load(a_rows + columns, mask=inside, other=0)
        # Past the L1 cache, which is left to the rows of `a` that neighbouring entries share.
        right = tl.load(b_rows + columns, mask=inside, other=0, cache_modifier=".cg")
        products = left.to(tl.float32) * right.to(tl.float32)
        # One sum a thread and entry: registers saved here are loads under way.
        total += tl.sum(tl.reshape(products, [BLOCK_E, LANES, BLOCK_D // LANES]), axis=2)
    tl.store(out + entries, tl.sum(total, axis=1))


def paired_dots(a: Tensor, b: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """The inner products `<a[rows[e]], b[indices[e]]>`, in fp32.

    `a` [N, D]; `b` [M, D]; `rows`, `indices` [E]. Returns `[E]`. Any order of the entries is
    right; where equal `rows` are neighbours, the rows of `a` are read from cache.
    """
    a, b = _unit_columns(a), _unit_columns(b)
    rows, indices = rows.contiguous(), indices.contiguous()
    num_entries, width = len(rows), a.shape[1]
    out = a.new_zeros(num_entries, dtype=torch.float32)
    if num_entries and width:
        # Each of 4 warps reads along the rows of 4 entries, one load of each at a time.
        _launch(
            _dot_entries,
            (-(-num_entries // 16),),
            a,
            b,
            rows,
            indices,
            out,
            num_entries,
            width,
            a.stride(0),
            b.stride(0),
            BLOCK_E=16,
            BLOCK_D=_warp_load(b.dtype),
            LANES=32,
            num_warps=4,
        )
    return out


def _round_rows(
    matrix,
    wide,
    norms,
    lost,
    width,
    wide_width,
    stride,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK_D], dtype=tl.float32)
    lost_squares = tl.zeros([BLOCK_D], dtype=tl.float32)
    for first in range(0, wide_width, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        values = tl.load(matrix + row * stride + columns, mask=columns < width, other=0)
        kept = values.to(tl.bfloat16)
        tl.store(wide + row * wide_width + columns, kept, mask=columns < wide_width)
        squares += values * values
        left = values - kept.to(tl.float32)
        lost_squares += left * left
    tl.store(norms + row, tl.sqrt(tl.sum(squares, axis=0)))
    tl.store(lost + row, tl.sqrt(tl.sum(lost_squares, axis=0)))


def rounded(matrix: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """`matrix` [R, D] in fp32 rounded to bf16 with zeros behind it, `[R, width]`, in one pass.

    With the L2 norms of its rows, and those of what rounding took from them, `[R]` each.
    """
    matrix = _unit_columns(matrix)
    wide = matrix.new_empty(len(matrix), width, dtype=torch.bfloat16)
    norms, lost = matrix.new_zeros(2, len(matrix)).unbind()
    if wide.numel():
        _launch(
            _round_rows,
            (len(matrix),),
            matrix,
            wide,
            norms,
            lost,
            matrix.shape[1],
            width,
            matrix.stride(0),
            BLOCK_D=min(2048, 1 << (width - 1).bit_length()),
            num_warps=4,
        )
    return wide, norms, lost


def segment_sums(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    if len(indices) == 0:
        return table.new_zeros(len(offsets), table.shape[1])
    return weighted_row_sums(table, indices, offsets, weights)


def row_sums(table: Tensor, places: Places, weights: Tensor) -> Tensor:
    return segment_sums(table, places.indices, places.offsets, weights)


def entry_dots(a: Tensor, b: Tensor, places: Places) -> Tensor:
    if len(places.rows) == 0:
        return a.new_zeros(0)
    # The columns are walked in order, so that each row of `b`, the large table, is read once.
    order, _ = places.by_latent
    dots = paired_dots(b, a, places.indices[order], places.rows[order]).to(a.dtype)
    return torch.empty_like(dots).index_copy_(0, order, dots)


def decoding_gradients(
    grad: Tensor, acts: Tensor, weight: Tensor, places: Places
) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()
    grad_acts = entry_dots(grad, weight, places).to(acts.dtype)
    return grad_acts, segment_sums(grad, *column_segments(places, acts, len(grad)))


def encoding_gradients(grad: Tensor, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    grad_weight = segment_sums(x, *column_segments(places, grad, len(x)))
    return grad_weight, reference.column_totals(grad, places)
