"""The kernels of numba against plain torch."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify_crosscoder import Crosscoder, CrosscoderConfig, DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders import SparseCode, kernels
from sparsify_crosscoder.crosscoders.batch_topk import select_largest
from sparsify_crosscoder.crosscoders.kernels import numba_kernels
from tests.support.fresh import run_fresh

kernels.start(torch.device("cpu"))
untimed = settings(deadline=None)
runs_kernels = pytest.mark.skipif(
    not numba_kernels.is_ready(), reason="numba is not installed or switched off"
)
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)
seeds = st.integers(0, 10_000)
dtypes = st.sampled_from([torch.float32, torch.float64])
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def entries(seed, dtype, pairs=9, latents=7, width=21, times=1):
    """A code of a third of all entries; inputs and weights."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(times * pairs, latents, generator=generator) < 0.3
    rows, indices = mask.nonzero(as_tuple=True)
    acts = torch.randn(len(rows), generator=generator, dtype=dtype)
    x, weight = (torch.randn(n, width, generator=generator, dtype=dtype) for n in (pairs, latents))
    return SparseCode(acts, indices, rows, (times * pairs, latents)), x, weight


def assert_close(got, want, magnitude):
    """Rounding is relative to the sum of absolute values."""
    assert got.shape == want.shape
    bound = TOLERANCE[got.dtype] * magnitude + torch.finfo(got.dtype).tiny
    assert ((got.double() - want.double()).abs() <= bound).all()


@runs_kernels
@untimed
@given(
    seeds, st.integers(0, 20), st.integers(1, 40), dtypes, st.sampled_from([-9.0, 0.5, 2.0, 9.0])
)
def test_entries_that_reach_their_cuts_are_those_of_torch(seed, rows, width, dtype, cut):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator).to(dtype)
    cuts = cut + torch.rand(width, generator=generator).to(dtype)
    cuts[0] = torch.inf
    mask = values >= cuts
    found = numba_kernels.reaching(values, cuts)
    assert torch.equal(torch.stack(found[:2], 1), mask.nonzero())
    assert torch.equal(found[2], values[mask])


@runs_kernels
def test_not_a_number_reaches_nothing():
    values = torch.tensor([[torch.nan, 1.0, torch.inf]])
    assert numba_kernels.reaching(values, torch.zeros(3))[1].tolist() == [1, 2]


@runs_kernels
@untimed
@given(seeds, st.integers(0, 60), st.integers(1, 60), st.integers(1, 12), dtypes)
def test_the_largest_are_those_of_torch_with_ties(seed, count, budget, levels, dtype):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, levels, (count,), generator=generator).to(dtype) / 3
    places, cut = numba_kernels.largest(scores, budget)
    mask, want = select_largest(scores.clamp_min(0)[None], budget)
    assert torch.equal(places, mask[0].nonzero()[:, 0])
    assert cut == want


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_differ_by_their_last_bit(dtype):
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    one = torch.ones((), dtype=dtype)
    above = torch.nextafter(one, 2 * one)
    scores = torch.stack([one, above, one * tiny, one * huge, one * 0, one, -one])
    for budget, places, cut in (
        (1, [3], huge),
        (2, [1, 3], above),
        (3, [0, 1, 3], 1),
        (5, [0, 1, 2, 3, 5], tiny),
        (6, [0, 1, 2, 3, 5], 0),
    ):
        found, smallest = numba_kernels.largest(scores, budget)
        assert found.tolist() == places and smallest == cut


@runs_kernels
@untimed
@given(seeds, st.integers(0, 50), st.integers(1, 20))
def test_the_order_is_stable(seed, count, size):
    keys = torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))
    order, starts = numba_kernels.order_by(keys, size)
    counts = torch.bincount(keys, minlength=size)
    assert torch.equal(order, keys.argsort(stable=True))
    assert torch.equal(starts, counts.cumsum(0) - counts)


@runs_kernels
@untimed
@given(seeds, st.integers(1, 9), st.integers(1, 7), st.integers(1, 40), dtypes)
def test_sums_over_entries_are_those_of_dense_products(seed, pairs, latents, width, dtype):
    places, x, weight = entries(seed, dtype, pairs, latents, width)
    rows, indices, acts = places.rows, places.indices, places.acts
    code = places.to_dense().double()
    wide, wide_x = weight.double(), x.double()

    sums = numba_kernels.row_sums(weight, places, acts)
    assert_close(sums, code @ wide, code.abs() @ wide.abs())
    dots = numba_kernels.entry_dots(x, weight, places)
    want, magnitude = (wide_x @ wide.T)[rows, indices], (wide_x.abs() @ wide.abs().T)[rows, indices]
    assert_close(dots, want, magnitude)
    grad_acts, grad_weight = numba_kernels.decoding_gradients(x, acts, weight, places)
    assert_close(grad_acts, want, magnitude)
    assert_close(grad_weight, code.T @ wide_x, code.abs().T @ wide_x.abs())


@runs_kernels
@untimed
@given(seeds, st.integers(1, 3), dtypes)
def test_encoding_gradients_begin_again_with_the_first_pair(seed, times, dtype):
    places, x, _ = entries(seed, dtype, times=times)
    code = places.to_dense().double()
    grad_weight, grad_bias = numba_kernels.encoding_gradients(places.acts, x, places)
    again = x.double().repeat(times, 1)
    assert_close(grad_weight, code.T @ again, code.abs().T @ again.abs())
    assert_close(grad_bias, code.sum(0), code.abs().sum(0))


@runs_kernels
@untimed
@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 9), dtypes)
def test_errors_and_distances_are_those_of_torch(seed, widths, pairs, dtype):
    generator = torch.Generator().manual_seed(seed)
    target, decoded = (
        torch.randn(pairs, sum(widths), generator=generator, dtype=dtype) for _ in "ab"
    )
    bias, scales = (torch.randn(n, generator=generator, dtype=dtype) for n in (sum(widths), 3))
    error, squares = numba_kernels.errors(target, decoded, bias, widths)
    assert torch.equal(error, target - (decoded + bias))
    want = torch.stack([part.double().square().sum() for part in error.split(widths, 1)])
    assert_close(squares, want, want)
    distances = numba_kernels.squared_distances(target, bias, widths)
    far = (target - bias).double().square().split(widths, 1)
    want = torch.stack([part.sum() for part in far])
    assert_close(distances, want, want)
    scales = scales[: len(widths)]
    scaled, sums = numba_kernels.scaled_by_source(error, scales, widths)
    assert torch.equal(scaled, error * scales.repeat_interleave(torch.tensor(widths)))
    assert_close(sums, scaled.double().sum(0), scaled.double().abs().sum(0))


@runs_kernels
@untimed
@given(seeds, st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 9), dtypes)
def test_norms_are_those_of_torch(seed, widths, rows, dtype):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, sum(widths), generator=generator, dtype=dtype)
    want = torch.stack([part.double().norm(dim=1) for part in table.split(widths, 1)])
    assert_close(numba_kernels.norms_by_source(table, widths), want, want)


@runs_kernels
@untimed
@given(seeds, st.lists(st.integers(1, 20), min_size=2, max_size=3), st.integers(0, 9))
def test_normalised_activations_are_those_of_torch_to_the_last_bit(seed, widths, pairs):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(pairs, width, generator=generator) for width in widths]
    crosscoder = Crosscoder(widths, CrosscoderConfig(num_latents=4, k=1))
    means = [torch.randn(width, generator=generator) for width in widths]
    crosscoder.set_normalization(means, torch.rand(len(widths), generator=generator))
    served = numba_kernels.normalized(parts, crosscoder.mean, crosscoder.factors, widths)
    assert torch.equal(served, crosscoder.normalize(parts))
    assert torch.equal(crosscoder.normalize(parts), crosscoder.normalize(torch.cat(parts, 1)))


@runs_kernels
@untimed
@given(seeds, st.integers(0, 9), st.integers(1, 40))
def test_rounded_matrices_are_those_of_torch(seed, rows, width):
    matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    wide, norms, lost = numba_kernels.rounded(matrix, width + 3)
    exact = matrix.double()
    assert torch.equal(wide[:, :width], matrix.bfloat16()) and not wide[:, width:].any()
    want = exact.norm(dim=1)
    assert_close(norms, want, want)
    want = (exact - matrix.bfloat16()).norm(dim=1)
    assert_close(lost, want, want)


@runs_kernels
def test_rounding_is_to_the_nearest_and_of_two_to_the_even():
    ulp = 2.0**-7
    matrix = torch.tensor([[1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp / 2 + 2**-23, -1 - 0.4 * ulp]])
    wide, _, lost = numba_kernels.rounded(matrix, 4)
    assert wide.tolist() == [[1, 1 + 2 * ulp, 1 + ulp, -1]]
    assert lost.item() == pytest.approx((3 / 4 + 0.4**2) ** 0.5 * ulp, rel=1e-4)
    extremes = torch.tensor([[3.4e38, -0.0, 1e-42, torch.inf, -torch.inf]])
    wide, norms, _ = numba_kernels.rounded(extremes, 5)
    assert torch.equal(wide, extremes.bfloat16()) and norms == torch.inf


def make(arch, screening):
    torch.manual_seed(0)
    options = {"num_latents": 64, "k": 4, "screening": screening}
    if arch == "dfc":
        cfg = DFCConfig(exclusive_fractions=[0.2, 0.1], **options)
        return DedicatedFeatureCrosscoder([20, 12], cfg)
    return Crosscoder([20, 12], CrosscoderConfig(**options))


@runs_kernels
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("screening", ["exact", "bfloat16"])
@pytest.mark.parametrize("arch", ["crosscoder", "dfc"])
def test_a_step_is_the_same_without_the_kernels(arch, screening, dead, monkeypatch):
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(64) % 3 == 0 if dead else None
    results = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(numba_kernels, "_compiled", {})
        crosscoder = make(arch, screening)
        out = crosscoder(x, normalized=True, dead_mask=mask, padded=False)
        (out.loss + out.auxk_loss).backward()
        results.append((out, [p.grad for p in crosscoder.parameters()]))
    (ours, grads), (torchs, want) = results
    assert torch.equal(ours.code.rows, torchs.code.rows)
    assert torch.equal(ours.code.indices, torchs.code.indices)
    torch.testing.assert_close(ours.code.acts, torchs.code.acts, rtol=1e-6, atol=1e-6)
    for name in ("loss", "auxk_loss", "fvu", "errors", "cuts"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name), rtol=2e-6, atol=0)
    for got, expected in zip(grads, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * expected.abs().max())


@runs_kernels
def test_a_step_gives_the_same_bits_again():
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    gradients = []
    for _ in range(2):
        crosscoder = make("dfc", "exact")
        crosscoder(x, normalized=True).loss.backward()
        gradients.append([p.grad for p in crosscoder.parameters()])
    assert all(map(torch.equal, *gradients))


PROBE = """
import sys, torch
{before}
from sparsify_crosscoder import Crosscoder, CrosscoderConfig
from sparsify_crosscoder.crosscoders.kernels import numba_kernels
crosscoder = Crosscoder([3, 4], CrosscoderConfig(num_latents=8, k=2))
crosscoder.eval()(torch.randn(5, 7))
assert "numba" not in sys.modules or sys.modules["numba"] is None
crosscoder.train()(torch.randn(5, 7)).loss.backward()
print("serve", numba_kernels.is_ready())
"""


@needs_numba
@pytest.mark.parametrize(
    "switch, before, serve",
    [
        ("1", "", True),
        pytest.param("0", "", False, marks=pytest.mark.slow),
        (
            "1",
            "import importlib.util as u\n"
            "found = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'numba' else found(name, *a)",
            False,
        ),
    ],
    ids=["installed", "switched off", "not installed"],
)
def test_numba_is_imported_when_training_begins(switch, before, serve, tmp_path):
    environment = {"SPARSIFY_CROSSCODER_NUMBA": switch}
    run = run_fresh(PROBE.format(before=before), tmp_path, env=environment)
    assert run.code == 0, run.err
    assert run.out.endswith(f"serve {serve}\n")


@needs_numba
def test_a_numba_that_does_not_work_is_left_alone(monkeypatch):
    def broken(*args):
        raise ImportError("Numba needs NumPy 1.0 or less")

    monkeypatch.setattr(numba_kernels, "_compile", broken)
    monkeypatch.setattr(numba_kernels, "_started", False)
    monkeypatch.setattr(numba_kernels, "_compiled", {})
    monkeypatch.delenv("SPARSIFY_CROSSCODER_NUMBA", raising=False)
    with pytest.warns(UserWarning, match="numba is not used.*NumPy 1.0 or less"):
        numba_kernels.start()
    assert not numba_kernels.is_ready()
