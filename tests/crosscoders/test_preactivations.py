import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify_crosscoder import CrosscoderConfig, DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders import Crosscoder, preactivations
from sparsify_crosscoder.crosscoders.kernels import numba_kernels
from sparsify_crosscoder.crosscoders.preactivations import (
    BoundedPreactivations,
    ExactPreactivations,
    Product,
    screened,
)

untimed = settings(deadline=None)
seeds = st.integers(0, 10_000)


def block(seed, pairs=9, latents=33, width=20, tail=1.0, dtype=torch.float64):
    """Inputs, weights and biases of one block; with a tail, some are far larger than others."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        size = torch.randn(*shape, generator=generator, dtype=dtype)
        spread = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator, dtype=dtype)
        return size * torch.exp(tail * spread)

    return draw(pairs, width), draw(latents, width), draw(latents)


def sorted_rows(values):
    return values.clamp_min(0).sort(1, descending=True).values


@untimed
@given(seeds, st.sampled_from([1, 2, 20, 300]), st.sampled_from([0.0, 3.0]))
def test_bounds_lie_above_the_exact_values_and_close_to_them(seed, width, tail):
    x, weight, bias = block(seed, width=width, tail=tail)
    bounded = BoundedPreactivations(x, weight, bias)
    exact = x @ weight.T + bias
    bounds = bounded.bounds.double()
    # The bounds were rounded themselves, to eight significant bits.
    assert (bounds + bounds.abs() * 2**-8 >= exact).all()
    size = x.norm(dim=1)[:, None] * weight.norm(dim=1)
    loosest = 0.02 * (size + bias.abs() * (1 + x.norm(dim=1)[:, None])) + 0.02 * width**0.5 * (
        weight.norm(dim=1) + bias.abs()
    )
    assert (bounds - exact <= loosest).all()


@untimed
@given(seeds, st.floats(0.01, 5))
def test_no_entry_that_reaches_its_cut_is_missed(seed, cut):
    x, weight, bias = block(seed)
    cuts = torch.full((len(weight),), cut, dtype=x.dtype)
    cuts[3] = torch.inf
    exact, bounded = (
        form(x, weight, bias) for form in (ExactPreactivations, BoundedPreactivations)
    )
    rows, latents, values = bounded.reaching(cuts)
    expected = (exact.values >= cuts).nonzero()
    found = {(int(r), int(m)) for r, m in zip(rows, latents, strict=True)}
    assert {(int(r), int(m)) for r, m in expected} <= found
    assert sorted(found) == [(int(r), int(m)) for r, m in zip(rows, latents, strict=True)]
    torch.testing.assert_close(values, exact.values[rows, latents])


@untimed
@given(seeds, st.sampled_from([1, 5, 12]))
def test_the_strongest_are_those_of_the_exact_product(seed, k):
    x, weight, bias = block(seed, latents=60)
    latents = torch.arange(0, 60, 2)
    values, chosen = BoundedPreactivations(x, weight, bias).strongest(latents, k)
    expected, _ = ExactPreactivations(x, weight, bias).strongest(latents, k)
    torch.testing.assert_close(sorted_rows(values), sorted_rows(expected))
    positive = values > 0
    at = (x @ weight.T + bias).gather(1, chosen)
    torch.testing.assert_close(values[positive], at[positive])
    assert set(chosen[positive].tolist()) <= set(latents.tolist())


@pytest.mark.parametrize("form", [ExactPreactivations, BoundedPreactivations])
@pytest.mark.parametrize("k", [1, 30, 700, 2_500])
@pytest.mark.parametrize("misleading", [None, "all high", "all low"])
def test_the_strongest_of_many_do_not_depend_on_the_sampled_columns(form, k, misleading):
    x, weight, bias = block(3, pairs=20, latents=6_000, width=16)
    latents = torch.arange(0, 6_000, 2)
    sampled = latents[:: len(latents) // 1_024]
    if misleading:
        bias[sampled] += 50.0 if misleading == "all high" else -50.0
    values, chosen = form(x, weight, bias).strongest(latents, k)
    everything = torch.addmm(bias, x, weight.T)
    torch.testing.assert_close(
        sorted_rows(values), sorted_rows(everything[:, latents].topk(k, dim=1).values)
    )
    positive = values > 0
    torch.testing.assert_close(values[positive], everything.gather(1, chosen)[positive])
    kept = chosen.masked_fill(~positive, -1).sort(1).values
    assert ((kept[:, 1:] != kept[:, :-1]) | (kept[:, 1:] == -1)).all()
    assert torch.isin(chosen[positive], latents).all()


def test_rows_whose_bounds_cannot_tell_are_computed_in_full():
    # All latents but for a millionth the same: their order is below the precision of bfloat16.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, generator=generator, dtype=torch.float64).abs()
    weight = 1 + 1e-6 * torch.randn(200, 16, generator=generator, dtype=torch.float64)
    bias = torch.zeros(200, dtype=torch.float64)
    latents = torch.arange(200)
    values, chosen = BoundedPreactivations(x, weight, bias).strongest(latents, 3)
    expected, order = ExactPreactivations(x, weight, bias).strongest(latents, 3)
    assert torch.equal(chosen, order)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank_by", ["score", "mean"])
@pytest.mark.parametrize("selection", ["grouped", "joint"])
def test_a_float32_crosscoder_selects_the_same_with_and_without_screening(selection, rank_by):
    torch.manual_seed(0)
    options = {"selection": selection, "rank_by": rank_by, "screening": "exact"}
    cfg = DFCConfig(num_latents=256, k=8, exclusive_fractions=[0.1, 0.1], **options)
    crosscoder = DedicatedFeatureCrosscoder([24, 40], cfg)
    x, dead = torch.randn(64, 64), torch.rand(256) < 0.4
    codes, losses = [], []
    for dtype in (None, torch.bfloat16):
        crosscoder.screen_dtype = dtype
        out = crosscoder(x, normalized=True, dead_mask=dead)
        codes.append(out.code)
        losses.append(torch.stack([out.loss, out.auxk_loss]))
    assert torch.equal(codes[0].rows, codes[1].rows)
    assert torch.equal(codes[0].indices, codes[1].indices)
    torch.testing.assert_close(codes[0].acts, codes[1].acts)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("screening", ["exact", "bfloat16"])
@pytest.mark.parametrize("level", [0.0, 1e-3, 1e30])
def test_what_is_selected_does_not_depend_on_the_step_before(screening, level):
    torch.manual_seed(0)
    cfg = CrosscoderConfig(num_latents=128, k=6, screening=screening)
    crosscoder = Crosscoder([10, 12], cfg, dtype=torch.float64)
    x = torch.randn(40, 22, dtype=torch.float64)
    fresh = crosscoder(x).code
    crosscoder.selector.levels[0] = torch.tensor(level, dtype=torch.float64)
    again = crosscoder(x).code
    assert torch.equal(fresh.rows, again.rows)
    assert torch.equal(fresh.indices, again.indices)
    crosscoder.selector.levels[0] = torch.tensor(level, dtype=torch.float64)
    cuts = crosscoder.find_cuts(x.tensor_split(3))
    torch.testing.assert_close(cuts, crosscoder(x).cuts, check_dtype=False)


@pytest.mark.parametrize("width", [64, 61])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_that_reach_their_cuts_are_found_in_order_over_many_rows(width, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, width, generator=generator).to(dtype)
    values[7], values[200:] = 9.0, -values[200:].abs()
    cuts = torch.rand(width, generator=generator).to(dtype) * 3 + 0.1
    rows, columns = (values >= cuts).nonzero().unbind(1)
    eye = torch.eye(width, dtype=dtype)
    for left, kept in ((values, False), (values, True), (values[:0], False)):
        product = Product(left, eye, None, kept)
        product.at_once = 24  # several pieces
        found = product.reaching(cuts)
        mine = rows < len(left)
        expected = (rows[mine], columns[mine], values[rows[mine], columns[mine]])
        assert all(map(torch.equal, found, expected))


def test_a_cheap_product_is_made_exactly_where_kernels_serve(monkeypatch):
    x, weight, bias = block(0, dtype=torch.float32)
    numba_kernels.start()
    compiled = numba_kernels._compiled
    for serve, most, form in (
        (True, x.numel() * len(weight), ExactPreactivations),
        (True, x.numel() * len(weight) - 1, BoundedPreactivations),
        (False, x.numel() * len(weight), BoundedPreactivations),
    ):
        monkeypatch.setattr(numba_kernels, "_compiled", compiled if serve else {})
        monkeypatch.setattr(preactivations, "_CHEAP_PRODUCT", most)
        assert isinstance(screened(x, weight, bias), form)


def test_only_bfloat16_screens():
    crosscoder = Crosscoder([3, 4], CrosscoderConfig(num_latents=8, k=2))
    with pytest.raises(ValueError, match="in bfloat16 or not at all"):
        crosscoder.screen_dtype = torch.float16
    double = Crosscoder([3, 4], CrosscoderConfig(num_latents=8, k=2), dtype=torch.float64)
    assert double.screen_dtype is None


@pytest.mark.parametrize("screening", ["exact", "bfloat16"])
def test_autocast_changes_nothing_that_is_exact(screening):
    torch.manual_seed(0)
    cfg = CrosscoderConfig(num_latents=128, k=6, screening=screening)
    crosscoder = Crosscoder([10, 12], cfg)
    x, dead = torch.randn(40, 22), torch.rand(128) < 0.5
    usual = crosscoder(x, normalized=True, dead_mask=dead)
    with torch.autocast("cpu", torch.bfloat16):
        cast = crosscoder(x, normalized=True, dead_mask=dead)
        cuts = crosscoder.find_cuts([x])
        cast.loss.backward()
    assert torch.equal(usual.code.indices, cast.code.indices)
    assert torch.equal(usual.code.acts, cast.code.acts)
    assert torch.equal(cuts, usual.cuts)
    torch.testing.assert_close(usual.loss, cast.loss.float())
    torch.testing.assert_close(usual.auxk_loss, cast.auxk_loss.float())
