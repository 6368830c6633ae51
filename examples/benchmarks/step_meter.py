"""What a GPU would do in a training step: bytes, operations, launches, waits, and memory held.

Nothing is run. Every operation that torch dispatches on fake CUDA tensors is counted by what it
must at least read and write, so that times are a floor of what the same kernels would take.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = frozenset(
    [
        "detach",
        "alias",
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "expand",
        "t",
        "transpose",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unsqueeze",
        "squeeze",
        "unbind",
        "as_strided",
        "diagonal",
        "unfold",
        "set_",
        "resize_",
        "lift_fresh",
        "empty",
        "new_empty",
        "empty_like",
        "empty_strided",
        "new_empty_strided",
    ]
)
"""What moves no bytes."""

GATHERS = frozenset(["index_select", "index", "gather", "embedding", "take"])
SCATTERS = frozenset(
    ["index_add_", "index_copy_", "scatter_", "scatter_add_", "index_put_", "scatter_reduce_"]
)
SORTS = {"sort": 8, "argsort": 8, "topk": 4, "cumsum": 2, "nonzero": 3, "bincount": 3}
"""Kernels of what is more than one, about."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU does in a second, by its data sheet, dense and without sparsity."""

    name: str
    bandwidth: float
    rates: dict[str, float]
    """Operations by precision."""

    cache: float = 50e6
    """Bytes of its L2 cache."""

    launch: float = 2e-6
    """Least seconds of a kernel."""


H200 = Gpu("NVIDIA H200 SXM", 4.8e12, {"float32": 67e12, "tf32": 494.5e12, "bfloat16": 989e12})


@dataclass(frozen=True)
class Metered:
    """A step as it was counted."""

    seconds: float
    launches: int
    waits: int
    bytes: float
    operations: float
    peak: int
    """Most bytes held at once."""

    slowest: list[tuple[str, float]]
    """Operations by name, and seconds of all of each, the slowest first."""


class Meter(TorchDispatchMode):
    """Counts what is dispatched, and answers where a host would wait for a GPU's result.

    Args:
        gpu: whose times are computed.
        share: of a mask `[N, m]`, the share of its entries that are true.
        by_length: of a mask `[m]`, the same by its length; 1 of other lengths.
    """

    def __init__(
        self,
        gpu: Gpu = H200,
        share: float = 0.0,
        by_length: Mapping[int, float] | None = None,
    ):
        super().__init__()
        self.gpu, self.share = gpu, share
        self.by_length = by_length or {}
        self.held: dict[int, int] = {}
        self.live = 0
        self.start()

    def start(self) -> None:
        """Count from here on; what is held stays."""
        self.by_name: Counter[str] = Counter()
        self.launches = self.waits = 0
        self.bytes = self.operations = 0.0
        self.peak = self.live
        self.mixed: list[str] = []

    def read(self) -> Metered:
        """What was counted since the start."""
        seconds = sum(self.by_name.values())
        slowest = [(n, s) for n, s in self.by_name.most_common(12)]
        counted = (self.launches, self.waits, self.bytes, self.operations, self.peak)
        return Metered(seconds, *counted, slowest)

    # Kernels of Triton, which are not torch's

    def weighted_row_sums(
        self,
        table: Tensor,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As `triton_kernels.weighted_row_sums`: every entry's row is read, every sum written."""
        out = table.new_empty(len(offsets), table.shape[1], dtype=dtype or table.dtype)
        entries = len(indices)
        moved = self._rows_read(table, entries) + _size(out) + 16 * entries
        self._count("triton: weighted_row_sums", moved, 2.0 * entries * table.shape[1], launches=2)
        return out

    def paired_dots(self, a: Tensor, b: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        """As `triton_kernels.paired_dots`: neighbours share a row of `a`, each reads one of `b`."""
        out = a.new_empty(len(rows), dtype=torch.float32)
        entries = len(rows)
        moved = min(entries, len(a)) * _row(a) + self._rows_read(b, entries) + 20 * entries
        self._count("triton: paired_dots", moved, 2.0 * entries * a.shape[1])
        return out

    def rounded(self, matrix: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `triton_kernels.rounded`: a matrix is read once and written in bfloat16."""
        wide = matrix.new_empty(len(matrix), width, dtype=torch.bfloat16)
        norms, lost = matrix.new_empty(2, len(matrix)).unbind()
        moved = _size(matrix) + _size(wide) + _size(norms) + _size(lost)
        self._count("triton: rounded", moved, 0.0)
        return wide, norms, lost

    def _rows_read(self, table: Tensor, entries: int) -> float:
        """Bytes of the rows that entries read; of a table that the L2 cache holds, once each."""
        cached = _size(table) < self.gpu.cache
        return (min(entries, len(table)) if cached else entries) * _row(table)

    # What torch dispatches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "prim":  # asks of a tensor's device
            return func(*args, **kwargs)
        if name == "_local_scalar_dense":
            return self._waited(args[0])
        if name == "nonzero":
            return self._nonzero(args[0])
        if name == "bincount":
            self.waits += 1
            self._count(name, _size(args[0]), 0.0, launches=SORTS[name])
            size = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            return self._hold(args[0].new_empty(size, dtype=torch.int64))
        if name in ("index", "index_put", "index_put_"):
            args = (args[0], self._numbered(args[1]), *args[2:])
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self._check_devices(name, given)
        out = func(*args, **kwargs)
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        for one in made:
            self._hold(one)
        if name not in VIEWS and any(one.is_cuda for one in [*given, *made]):
            moved = _moved(name, given, made)
            if name == "_fused_adam_" and kwargs.get("grad_scale") is not None:
                moved *= 8 / 7  # what is divided is written back
            self._count(name, moved, *self._computed(name, given, made))
            if name == "_to_copy" and made and given and made[0].device != given[0].device:
                self.waits += 1
        return out

    def _waited(self, value: Tensor) -> Any:
        """What the host is told: that a comparison holds, and that a count is 0."""
        self.waits += value.is_cuda
        if value.dtype == torch.bool:
            return True
        return 0.0 if value.is_floating_point() else 0

    def _nonzero(self, mask: Tensor) -> Tensor:
        self.waits += 1
        share = self.share if mask.ndim > 1 else self.by_length.get(len(mask), 1.0)
        found = round(share * mask.numel())
        out = self._hold(mask.new_empty(found, mask.ndim, dtype=torch.int64))
        self._count("nonzero", 2 * _size(mask) + _size(out), 0.0, launches=SORTS["nonzero"])
        return out

    def _numbered(self, indices: Any) -> list[Any]:
        """The same places by numbers where a mask gives them, as torch does it, with a wait."""
        found: list[Any] = []
        for one in indices:
            if one is None or one.dtype != torch.bool:
                found.append(one)
                continue
            found += self._nonzero(one).unbind(1)
        return found

    def _computed(self, name: str, given: list[Tensor], made: list[Tensor]) -> tuple[float, str]:
        if name not in ("mm", "addmm", "bmm"):
            return 0.0, "float32"
        a = given[-2]
        kind = "bfloat16" if a.dtype == torch.bfloat16 else "float32"
        if kind == "float32" and torch.get_float32_matmul_precision() != "highest":
            kind = "tf32"
        return 2.0 * made[0].numel() * a.shape[-1], kind

    def _count(
        self, name: str, moved: float, operations: float, kind: str = "bfloat16", launches: int = 0
    ) -> None:
        launches = launches or SORTS.get(name, 1)
        self.launches += launches
        self.bytes += moved
        self.operations += operations
        takes = max(moved / self.gpu.bandwidth, operations / self.gpu.rates[kind])
        self.by_name[name] += max(takes, launches * self.gpu.launch)

    def _check_devices(self, name: str, given: list[Tensor]) -> None:
        large = {one.device.type for one in given if one.ndim}
        if len(large) > 1 and name not in ("_to_copy", "copy_"):
            self.mixed.append(name)

    # Memory

    def _hold(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            self.held[key] = size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)
        return tensor

    def _free(self, key: int) -> None:
        self.live -= self.held.pop(key, 0)


def _row(table: Tensor) -> int:
    return table.shape[1] * table.dtype.itemsize


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _moved(name: str, given: list[Tensor], made: list[Tensor]) -> float:
    """Bytes that an operation reads and writes, at least."""
    if name in GATHERS:
        return sum(2.0 * _size(one) for one in made) + sum(_size(one) for one in given[1:])
    if name in SCATTERS:
        return sum(2.0 * _size(one) for one in given[1:])
    read, written = sum(map(_size, given)), sum(map(_size, made))
    if name == "_fused_adam_":  # all four are read, all but the gradient written
        return 1.75 * read
    if name.startswith("_foreach") and name.endswith("_"):
        return 2.0 * read
    if name.endswith("_") and not name.startswith("_"):  # in place: what is written was read too
        return read + written
    return (read + written) * SORTS.get(name, 1)
