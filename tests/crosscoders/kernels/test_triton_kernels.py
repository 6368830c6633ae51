"""The GPU kernels against plain torch: on a GPU, or slowly in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders.kernels import serving, triton_kernels
from sparsify_crosscoder.crosscoders.kernels.triton_kernels import (
    available,
    paired_dots,
    rounded,
    weighted_row_sums,
)

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
INSTALLED = importlib.util.find_spec("triton") is not None
# Triton reads this when it is first imported, and sparsify imports it: too late to set it here.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

runs_kernels = pytest.mark.skipif(
    not INSTALLED or not (GPU or INTERPRETED),
    reason="no GPU: these run in Triton's interpreter" if INSTALLED else "triton is not installed",
)
needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU")
stands_in_for_gpu = pytest.mark.skipif(
    not INSTALLED or GPU or INTERPRETED,
    reason="the kernels themselves run" if INSTALLED else "triton is not installed",
)

TABLES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def offsets_of(lengths):
    lengths = torch.tensor(lengths)
    return (lengths.cumsum(0) - lengths).to(DEVICE)


def reference_sums(table, indices, offsets, weights):
    """The sums in float64, and the sums of absolute values, to which rounding is relative."""
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(indices)])])
    rows = torch.arange(len(offsets), device=offsets.device).repeat_interleave(ends - offsets)
    terms = weights.double()[:, None] * table.double()[indices]
    zeros = terms.new_zeros(len(offsets), table.shape[1])
    return zeros.index_add(0, rows, terms), zeros.index_add(0, rows, terms.abs())


SEGMENTS = {
    "short, some empty": ([3, 0, 5, 1, 0, 17, 0], 40),
    "columns over several blocks": ([2, 0, 3], 2100),
    "one column": ([3, 0, 5, 1, 0], 1),
    "everything in one": ([0, 600, 0], 40),
    "cut in several places": ([0, 0, 300, 1, 0, 260, 4, 255, 1, 0], 40),
    "ends at a cut": ([256, 0, 256, 1], 40),
    "all long": ([70, 40], 1100),
    "all empty": ([0, 0, 0], 40),
    "none": ([], 40),
}


@runs_kernels
@TABLES
@pytest.mark.parametrize("case", SEGMENTS)
def test_row_sums_are_those_of_float64(case, dtype):
    lengths, width = SEGMENTS[case]
    table = torch.randn(11, width, device=DEVICE).to(dtype)
    indices = torch.randint(11, (sum(lengths),), device=DEVICE)
    weights = torch.randn(len(indices), device=DEVICE)
    offsets = offsets_of(lengths).long()

    got = weighted_row_sums(table, indices, offsets, weights, torch.float32)
    want, magnitude = reference_sums(table, indices, offsets, weights)
    assert got.shape == want.shape and got.dtype == torch.float32
    assert torch.all((got - want).abs() <= 1e-6 * magnitude)
    in_tables_dtype = weighted_row_sums(table, indices, offsets, weights)
    assert in_tables_dtype.dtype == dtype
    # The interpreter cuts off what a GPU rounds.
    torch.testing.assert_close(in_tables_dtype.float(), got, rtol=2**-7, atol=0)


@runs_kernels
def test_row_sums_read_columns_of_a_wider_table_and_weights_of_another_dtype():
    wide = torch.randn(9, 70, device=DEVICE)
    indices, offsets = torch.randint(9, (20,), device=DEVICE), offsets_of([5, 15])
    weights = torch.randn(20, device=DEVICE).bfloat16()
    for table in (wide[:, 3:50], wide.T[:, :9]):
        got = weighted_row_sums(table, indices, offsets, weights)
        want, magnitude = reference_sums(table, indices, offsets, weights)
        assert torch.all((got - want).abs() <= 1e-6 * magnitude)


@runs_kernels
def test_what_a_segment_does_not_list_does_not_reach_it():
    table = torch.full((4, 40), torch.inf, device=DEVICE)
    table[1] = 1
    indices = torch.ones(9, dtype=torch.int64, device=DEVICE)
    got = weighted_row_sums(table, indices, offsets_of([5, 0, 4]), indices.float())
    assert got[:, 0].tolist() == [5, 0, 4]


@runs_kernels
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16",) * 2, ("float32", "half")])
@pytest.mark.parametrize("entries, width", [(37, 300), (16, 256), (5, 7), (0, 40), (3, 0)])
def test_entry_dots_are_those_of_float64(entries, width, dtypes):
    a, b = (
        torch.randn(n, width, device=DEVICE).to(getattr(torch, dtype))
        for n, dtype in zip((6, 9), dtypes, strict=True)
    )
    rows = torch.randint(6, (entries,), device=DEVICE).sort().values
    indices = torch.randint(9, (entries,), device=DEVICE)
    terms = a.double()[rows] * b.double()[indices]
    for order in (slice(None), torch.randperm(entries, device=DEVICE)):
        got = paired_dots(a, b, rows[order], indices[order])
        want, magnitude = terms[order].sum(1), terms[order].abs().sum(1)
        assert got.shape == (entries,) and got.dtype == torch.float32
        assert torch.all((got - want).abs() <= 1e-6 * magnitude)


@runs_kernels
@pytest.mark.parametrize("shape", [(5, 40), (3, 2100), (2, 1), (0, 40), (3, 0)])
@pytest.mark.parametrize("more", [0, 4])
def test_rows_are_rounded_and_what_they_lose_is_told(shape, more):
    wide = torch.randn(shape[0], shape[1] + 3, device=DEVICE)
    for matrix in (wide[:, 3:], wide[:, 3:].T.contiguous().T):
        kept, norms, lost = rounded(matrix, shape[1] + more)
        assert kept.dtype == torch.bfloat16 and kept.shape == (shape[0], shape[1] + more)
        assert not kept[:, shape[1] :].any()
        left = matrix.double() - kept[:, : shape[1]].double()
        # The interpreter cuts off what a GPU rounds.
        assert (left.abs() <= (2**-9 if GPU else 2**-8) * 2 * matrix.double().abs()).all()
        torch.testing.assert_close(norms.double(), matrix.double().norm(dim=1), rtol=1e-6, atol=0)
        torch.testing.assert_close(lost.double(), left.norm(dim=1), rtol=1e-6, atol=0)


@runs_kernels
@TABLES
def test_the_trial_before_their_first_use_passes(dtype):
    assert serving._triton_works.__wrapped__(torch.device(DEVICE), dtype)


def test_kernels_that_fail_their_trial_are_not_used(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(triton_kernels, "weighted_row_sums", broken)
    with pytest.warns(UserWarning, match="torch's own are: RuntimeError: no compiler"):
        assert not serving._triton_works.__wrapped__(torch.device("cpu"), torch.float32)


@runs_kernels
def test_a_training_step_through_the_kernels_is_that_through_torch(monkeypatch):
    cfg = DFCConfig(num_latents=60, k=4, exclusive_fractions=[0.2, 0.2])
    crosscoder = DedicatedFeatureCrosscoder([9, 7], cfg, device=DEVICE)
    x, dead = torch.randn(20, 16, device=DEVICE), torch.rand(60, device=DEVICE) < 0.4
    gradients = []
    for through_kernels in (False, True):
        monkeypatch.setattr(triton_kernels, "available", lambda _, use=through_kernels: use)
        crosscoder.zero_grad()
        out = crosscoder(x, normalized=True, dead_mask=dead)
        (out.loss + out.auxk_loss).backward()
        gradients.append([p.grad.clone() for p in crosscoder.parameters()])
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-6)


@needs_gpu
@runs_kernels
@TABLES
@pytest.mark.parametrize("width", [2880, 4096])
def test_uneven_segments_at_a_gpus_size_twice_with_the_same_bits(width, dtype):
    pairs, latents, entries = 512, 5000, 30_000
    popularity = torch.arange(1, latents + 1).double().reciprocal()
    indices = torch.multinomial(popularity, entries, replacement=True).to(DEVICE)
    rows = torch.multinomial(torch.rand(pairs).pow(8), entries, replacement=True).to(DEVICE)
    rows = rows.sort().values
    acts = torch.rand(entries, device=DEVICE)
    weight = torch.randn(latents, width, device=DEVICE).to(dtype)
    x = torch.randn(pairs, width, device=DEVICE).to(dtype)

    def starts(sorted_ids, count):
        return torch.searchsorted(sorted_ids, torch.arange(count, device=DEVICE))

    order = torch.argsort(indices, stable=True)
    by_latent = starts(indices[order], latents)
    for table, ids, offsets, weights in (
        (weight, indices, starts(rows, pairs), acts),
        (x, rows[order], by_latent, acts[order]),
    ):
        got = weighted_row_sums(table, ids, offsets, weights, torch.float32)
        want, magnitude = reference_sums(table, ids, offsets, weights)
        assert torch.all((got - want).abs() <= 2e-6 * magnitude)
        assert torch.equal(got, weighted_row_sums(table, ids, offsets, weights, torch.float32))

    got = paired_dots(x, weight, rows, indices)
    for part in torch.arange(entries, device=DEVICE).split(8192):
        terms = x.double()[rows[part]] * weight.double()[indices[part]]
        assert torch.all((got[part] - terms.sum(1)).abs() <= 2e-6 * terms.abs().sum(1))
    assert torch.equal(got, paired_dots(x, weight, rows, indices))


@needs_gpu
@runs_kernels
def test_available_on_a_gpu_for_the_dtypes_of_training():
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert all(available(torch.zeros(1, device=DEVICE, dtype=dtype)) for dtype in dtypes)
    assert not available(torch.zeros(1, device=DEVICE, dtype=torch.float64))


def test_not_available_off_a_gpu():
    assert not available(torch.zeros(1))


@stands_in_for_gpu
def test_the_kernels_in_tritons_interpreter():
    # Older interpreters do not all work with today's NumPy.
    pytest.importorskip("triton", minversion="3.9")
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*pytest_command, __file__, str(Path(__file__).with_name("test_kernels.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


def source_of(launch):
    """What Triton compiles for a launch: a pointer's type or a number's, with what 16 divides."""
    import triton

    kernel = triton_kernels._compiled(launch["kernel"])
    values = dict(zip(kernel.arg_names, launch["args"], strict=False)) | launch["options"]
    signature, constants, hints = {}, {}, {}
    for i, param in enumerate(kernel.params):
        value = values.pop(param.name)
        if isinstance(value, torch.Tensor):
            signature[param.name], address = POINTERS[value.dtype], value.data_ptr()
        elif param.is_constexpr or (value == 1 and not param.do_not_specialize):
            signature[param.name], constants[(i,)] = "constexpr", value
            continue
        else:
            signature[param.name], address = "i32", value
        if address % 16 == 0 and not param.do_not_specialize:
            hints[(i,)] = [["tt.divisibility", 16]]
    return triton.compiler.ASTSource(kernel, signature, constants, hints), values


@stands_in_for_gpu
@pytest.mark.parametrize("capability, dtype", [(80, torch.float32), (90, torch.bfloat16)])
def test_the_kernels_compile_for_gpus(capability, dtype, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = []

    def record(kernel, grid, *args, **options):
        launches.append({"kernel": kernel, "args": args, "options": options})

    monkeypatch.setattr(triton_kernels, "_launch", record)
    indices = torch.zeros(300, dtype=torch.int64)
    for width in (1, 40, 8192):
        table = torch.zeros(20, width, dtype=dtype)
        for offsets in (torch.tensor([0, 295]), torch.arange(300)):
            weighted_row_sums(table, indices, offsets, torch.zeros(300))
        paired_dots(table, table, indices, indices)
        rounded(table.float(), width + 4)
    assert len({launch["kernel"] for launch in launches}) == 3

    for launch in launches:
        source, options = source_of(launch)
        target = GPUTarget("cuda", capability, 32)
        options["enable_fp_fusion"] = True
        assert triton.compile(source, target=target, options=options).asm["cubin"]
