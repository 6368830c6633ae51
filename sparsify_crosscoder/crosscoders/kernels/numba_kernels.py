"""The operations on a CPU, compiled by numba where it is installed.

Each does in one call what takes torch ten, and calls are most of a small step's time. Of the same
scores, torch selects the same, to the last bit. numba is imported by `start`, when training begins;
before that, and without numba, nothing serves.
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

from . import numba_loops as loops
from .places import Places

_FLOATS = (torch.float32, torch.float64)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "order_by": (torch.int64,),
    "starts_of": (torch.int64,),
    "reaching": (*_FLOATS, torch.int16),
    "largest": _FLOATS,
    "row_sums": _FLOATS,
    "entry_dots": _FLOATS,
    "decoding_gradients": _FLOATS,
    "encoding_gradients": _FLOATS,
    "rounded": (torch.float32,),
    "norms_by_source": _FLOATS,
    "normalized": (torch.float32,),
    "errors": _FLOATS,
    "squared_distances": _FLOATS,
    "scaled_by_source": _FLOATS,
}
"""What this module is for: operations, and the one dtype that all of their tensors have."""

MOST_PRODUCTS = 2**22
"""Of the sums that are made here. In larger ones calls do not count, and torch waits for memory as
these kernels do, but with all its threads."""

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

        _compiled.update({loop: _compile(numba, loop) for loop in (*loops.EXACT, *loops.SUMS)})
        _try_all()
    except Exception as error:  # of a numpy that is too new, of a missing LLVM: all are reasons
        _compiled.clear()
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"numba is not used, torch alone is: {reason}", stacklevel=2)


def is_ready() -> bool:
    """Whether the kernels serve."""
    return bool(_compiled)


def _compile(numba: Any, loop: Any) -> Any:
    options: dict[str, Any] = {"error_model": "numpy"}
    if loop in loops.SUMS:
        options["fastmath"] = {"reassoc", "contract", "nsz"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no folder for what was compiled can be written to
        return numba.njit(**options)(loop)


def _try_all() -> None:
    """Compile everything for float32, so that what does not work shows before it is relied on."""
    x, places = torch.ones(2, 2), torch.arange(2)
    by_latent = order_by(places, 2)
    reaching(x, x[0])
    reaching(x.to(torch.int16), x[0].to(torch.int16))
    largest(x[0], 1)
    _run(loops.entry_dots, x, x, places, places)
    _run(loops.row_sums, x, places, places, x[0], 2)
    _run(loops.decoding_gradients, x, x[0], x, places, *by_latent)
    _run(loops.encoding_gradients, x[0], x, places, *by_latent)
    rounded(x, 4)
    norms_by_source(x, [2])
    normalized([x, x], torch.ones(4), x[0], [2, 2])
    errors(x, x, x[0], [2])
    squared_distances(x, x[0], [2])
    scaled_by_source(x, x[0, :1], [2])


def _run(loop: Any, *args: Any) -> Any:
    arrays = [
        arg.contiguous().numpy(force=True) if isinstance(arg, Tensor) else arg for arg in args
    ]
    return _compiled[loop](*arrays)


def _tensors(loop: Any, *args: Any) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, _run(loop, *args)))


def order_by(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    order, starts = _tensors(loops.order_by, keys, size)
    return order, starts


def starts_of(keys: Tensor, size: int) -> Tensor:
    return order_by(keys, size)[1]


def reaching(values: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, found = _tensors(loops.reaching, values, cuts)
    return rows, columns, found


def largest(scores: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    # Positive floating-point numbers are in the order of their bits.
    bits = scores.view(torch.int32 if scores.itemsize == 4 else torch.int64)
    kept, cut = _tensors(loops.largest, bits, budget)
    return kept, cut.view(scores.dtype)[0]


def entry_dots(a: Tensor, b: Tensor, places: Places) -> Tensor:
    return torch.from_numpy(_run(loops.entry_dots, a, b, places.rows, places.indices))


def row_sums(table: Tensor, places: Places, weights: Tensor) -> Tensor:
    where = places.rows, places.indices
    return torch.from_numpy(_run(loops.row_sums, table, *where, weights, places.shape[0]))


def decoding_gradients(
    grad: Tensor, acts: Tensor, weight: Tensor, places: Places
) -> tuple[Tensor, Tensor]:
    where = places.rows, *places.by_latent
    grad_acts, grad_weight = _tensors(loops.decoding_gradients, grad, acts, weight, *where)
    return grad_acts, grad_weight


def encoding_gradients(grad: Tensor, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    where = places.rows, *places.by_latent
    grad_weight, grad_bias = _tensors(loops.encoding_gradients, grad, x, *where)
    return grad_weight, grad_bias


def rounded(matrix: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    wide, norms, lost = _tensors(loops.rounded, matrix, width)
    return wide.view(torch.bfloat16), norms, lost


def norms_by_source(table: Tensor, widths: Sequence[int]) -> Tensor:
    return torch.from_numpy(_run(loops.norms_by_source, table, _ends(widths)))


def normalized(
    parts: Sequence[Tensor], mean: Tensor, factors: Tensor, widths: Sequence[int]
) -> Tensor:
    arrays = tuple(part.contiguous().numpy(force=True) for part in parts)
    return torch.from_numpy(_run(loops.normalized, arrays, mean, factors))


def errors(
    target: Tensor, decoded: Tensor, bias: Tensor, widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    error, squares = _tensors(loops.errors, target, decoded, bias, _ends(widths))
    return error, squares


def squared_distances(x: Tensor, centre: Tensor, widths: Sequence[int]) -> Tensor:
    return torch.from_numpy(_run(loops.squared_distances, x, centre, _ends(widths)))


def scaled_by_source(table: Tensor, scales: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    scaled, sums = _tensors(loops.scaled_by_source, table, scales, _ends(widths))
    return scaled, sums


def _ends(widths: Sequence[int]) -> np.ndarray:
    return _cached_ends(tuple(widths))


@cache
def _cached_ends(widths: tuple[int, ...]) -> np.ndarray:
    return np.array(list(accumulate(widths)), np.int64)
