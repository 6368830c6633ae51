"""Every kernel against the reference, and who serves which tensors."""

import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify_crosscoder.crosscoders import SparseCode, kernels
from sparsify_crosscoder.crosscoders.kernels import (
    numba_kernels,
    reference,
    serving,
    triton_kernels,
    who_serves,
)

kernels.start(torch.device("cpu"))
GPU = torch.cuda.is_available()
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WIDTHS = [20, 13]


class Draw:
    """Arguments for the operations, from one seed: 30 pairs, 17 latents, 33 columns."""

    def __init__(self, dtype: torch.dtype, device: str, entries: float = 0.3):
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.device = dtype, device
        mask = torch.rand(30, 17, generator=self.generator) < entries
        rows, indices = mask.to(device).nonzero(as_tuple=True)
        self.code = SparseCode(self.normal(len(rows)), indices, rows, (30, 17))

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)

    @property
    def acts(self) -> Tensor:
        return self.code.acts


OPERATIONS: dict[str, Callable[[Draw], tuple[Any, ...]]] = {
    "order_by": lambda d: (d.code.indices, 17),
    "starts_of": lambda d: (d.code.rows, 30),
    "reaching": lambda d: (d.normal(30, 17), d.normal(17).abs()),
    "largest": lambda d: (d.normal(200), 40),
    "segment_sums": lambda d: (d.normal(17, 33), d.code.indices, d.code.offsets, d.acts),
    "row_sums": lambda d: (d.normal(17, 33), d.code, d.acts),
    "entry_dots": lambda d: (d.normal(30, 33), d.normal(17, 33), d.code),
    "decoding_gradients": lambda d: (d.normal(30, 33), d.acts, d.normal(17, 33), d.code),
    "encoding_gradients": lambda d: (d.acts, d.normal(30, 33), d.code),
    "rounded": lambda d: (d.normal(17, 33), 40),
    "norms_by_source": lambda d: (d.normal(17, 33), WIDTHS),
    "normalized": lambda d: ([d.normal(30, w) for w in WIDTHS], d.normal(33), d.normal(2), WIDTHS),
    "errors": lambda d: (d.normal(30, 33), d.normal(30, 33), d.normal(33), WIDTHS),
    "squared_distances": lambda d: (d.normal(30, 33), d.normal(33), WIDTHS),
    "scaled_by_source": lambda d: (d.normal(30, 33), d.normal(2), WIDTHS),
}
EXACT = {"order_by", "starts_of", "reaching", "largest", "normalized"}
FLOATS = {torch.float32: 2e-5, torch.float64: 1e-13, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def cases(module: Any) -> list[Any]:
    """Operations of a module and the dtypes that it serves them in; activations have a dtype."""
    return [
        pytest.param(name, dtype, id=f"{name}-{dtype}".replace("torch.", ""))
        for name, dtypes in module.DTYPES.items()
        for dtype in (dtypes if name not in ("order_by", "starts_of") else [torch.float32])
        if dtype in FLOATS
    ]


def compare(module: Any, name: str, draw: Draw) -> None:
    arguments = OPERATIONS[name](draw)
    expected = getattr(reference, name)(*arguments)
    found = getattr(module, name)(*arguments)
    parts = zip(_tensors(found), _tensors(expected), strict=True)
    for got, want in parts:
        assert got.shape == want.shape and got.dtype == want.dtype
        if name in EXACT or not got.dtype.is_floating_point:
            assert torch.equal(got, want)
            continue
        size = float(want.double().abs().max()) if want.numel() else 0.0
        tolerance = FLOATS[draw.dtype]
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * size)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


needs_numba = pytest.mark.skipif(not numba_kernels.is_ready(), reason="numba does not serve")


@needs_numba
@pytest.mark.parametrize("entries", [0.3, 0.0], ids=["some", "none"])
@pytest.mark.parametrize(("name", "dtype"), cases(numba_kernels))
def test_numba_computes_what_the_reference_does(name, dtype, entries):
    compare(numba_kernels, name, Draw(dtype, "cpu", entries))


@pytest.mark.skipif(
    not INSTALLED or not (GPU or INTERPRETED),
    reason="no GPU: these run in Triton's interpreter" if INSTALLED else "triton is not installed",
)
@pytest.mark.parametrize("entries", [0.3, 0.0], ids=["some", "none"])
@pytest.mark.parametrize(("name", "dtype"), cases(triton_kernels))
def test_triton_computes_what_the_reference_does(name, dtype, entries):
    if name == "rounded" and not GPU:
        pytest.skip("The interpreter cuts off what a GPU rounds; a test of its own allows for it.")
    compare(triton_kernels, name, Draw(dtype, "cuda" if GPU else "cpu", entries))


def test_the_table_has_every_operation_and_the_reference_writes_all_of_them():
    assert OPERATIONS.keys() == {*numba_kernels.DTYPES, *triton_kernels.DTYPES}
    for name in OPERATIONS:
        expected = inspect.signature(getattr(reference, name))
        for module in (numba_kernels, triton_kernels):
            if name in module.DTYPES:
                assert inspect.signature(getattr(module, name)) == expected, name
        assert callable(getattr(kernels, name))
        assert f"`{name}`" in str(kernels.__doc__)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_reference_by_the_dense_matrices(name):
    d = Draw(torch.float64, "cpu")
    arguments = OPERATIONS[name](d)
    found = _tensors(getattr(reference, name)(*arguments))
    dense = d.code.to_dense()
    first = arguments[0]
    match name:
        case "order_by":
            assert (first[found[0]].diff() >= 0).all()
            expected = [found[0], torch.tensor([int((first < m).sum()) for m in range(17)])]
        case "starts_of":
            expected = [torch.tensor([int((first < n).sum()) for n in range(30)])]
        case "reaching":
            mask = first >= arguments[1]
            expected = [*mask.nonzero().unbind(1), first[mask]]
        case "largest":
            order = first.argsort(descending=True)[:40]
            expected = [order.sort().values, first[order].min()]
        case "segment_sums" | "row_sums":
            expected = [dense @ first]
        case "entry_dots":
            expected = [(first @ arguments[1].T)[d.code.rows, d.code.indices]]
        case "decoding_gradients":
            dots = first @ arguments[2].T
            expected = [dots[d.code.rows, d.code.indices], dense.T @ first]
        case "encoding_gradients":
            expected = [dense.T @ arguments[1], dense.sum(0)]
        case "rounded":
            wide = torch.nn.functional.pad(first.bfloat16(), (0, 7))
            expected = [wide, first.norm(dim=1), (first - first.bfloat16()).norm(dim=1)]
        case "norms_by_source":
            expected = [torch.stack([first[:, :20].norm(dim=1), first[:, 20:].norm(dim=1)])]
        case "normalized":
            factors = arguments[2].repeat_interleave(torch.tensor(WIDTHS))
            expected = [(torch.cat(first, 1) - arguments[1]) * factors]
        case "errors":
            error = first - (arguments[1] + arguments[2])
            expected = [error, torch.stack([p.square().sum() for p in error.split(WIDTHS, 1)])]
        case "squared_distances":
            far = (first - arguments[1]).square()
            expected = [torch.stack([far[:, :20].sum(), far[:, 20:].sum()])]
        case _:
            scaled = first * arguments[1].repeat_interleave(torch.tensor(WIDTHS))
            expected = [scaled, scaled.sum(0)]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@needs_numba
def test_numba_serves_small_sums_of_one_full_precision():
    small, most = torch.zeros(4, 8), numba_kernels.MOST_PRODUCTS
    assert who_serves("row_sums", small, small, products=most) is numba_kernels
    assert who_serves("row_sums", small, small, products=most + 1) is reference
    assert who_serves("row_sums", small, small.double()) is reference
    assert who_serves("row_sums", small.bfloat16()) is reference
    assert who_serves("row_sums", small.to("meta")) is reference
    assert who_serves("order_by", torch.arange(3)) is numba_kernels
    assert who_serves("order_by", torch.arange(3, dtype=torch.int32)) is reference
    assert who_serves("rounded", small.double()) is reference
    assert who_serves("segment_sums", small) is reference


@needs_numba
def test_nobody_but_torch_serves_what_needs_a_gradient():
    weight = torch.zeros(4, 8, requires_grad=True)
    assert who_serves("norms_by_source", weight) is reference
    with torch.no_grad():
        assert who_serves("norms_by_source", weight) is numba_kernels


@needs_numba
def test_activations_that_do_not_fit_are_normalised_by_torch(monkeypatch):
    served = []
    monkeypatch.setattr(numba_kernels, "normalized", lambda parts, *_: served.append(parts))
    mean, factors = torch.zeros(5), torch.ones(2)
    fit = [torch.zeros(4, 3), torch.zeros(4, 2)]
    for parts in (
        [torch.zeros(4, 5)],
        [fit[0], fit[1].bfloat16()],
        [fit[0], fit[1].requires_grad_()],
        [part[None] for part in fit],
    ):
        assert kernels.normalized(parts, mean, factors, [3, 2]).shape[-1] == 5
    assert not served
    kernels.normalized([part.detach() for part in fit], mean, factors, [3, 2])
    assert len(served) == 1


def test_without_numba_torch_serves_everything(monkeypatch):
    monkeypatch.setattr(numba_kernels, "_compiled", {})
    assert all(who_serves(name, torch.zeros(2, 2)) is reference for name in OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "available", "switch", "works", "serves"),
    [
        ("entry_dots", True, None, True, True),
        ("entry_dots", False, None, True, False),
        ("entry_dots", True, "0", True, False),
        ("entry_dots", True, None, False, False),
        ("order_by", True, None, True, False),
    ],
)
def test_triton_serves_where_it_works(operation, available, switch, works, serves, monkeypatch):
    if switch is not None:
        monkeypatch.setenv("SPARSIFY_CROSSCODER_TRITON", switch)
    else:
        monkeypatch.delenv("SPARSIFY_CROSSCODER_TRITON", raising=False)
    monkeypatch.setattr(triton_kernels, "available", lambda table: available)
    monkeypatch.setattr(serving, "_triton_works", lambda device, dtype: works)
    found = who_serves(operation, torch.zeros(2, 2, device="meta"))
    assert found is (triton_kernels if serves else reference)
