"""Stitching on maps that are known, and against plain least squares."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify_crosscoder import Stitching, fit_stitching
from sparsify_crosscoder.interventions.affine_maps import (
    AffineMap,
    Normalization,
    NormalizedPairs,
    closed_form,
    stitching_loss,
)
from sparsify_crosscoder.interventions.stitching import StitchingConfig
from sparsify_crosscoder.store.tensor_stream import TensorStream

QUICK = {"steps": 60, "pairs_per_step": 256, "learning_rate": 3e-3}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(
    pairs: int = 5_000, widths=(12, 9), factors: int = 16, noise: float = 0.5, seed: int = 0
) -> list[Tensor]:
    """Two noisy views of common factors of unequal strength."""
    strength = torch.linspace(3, 0.1, factors)
    common = random(pairs, factors, seed=seed) * strength
    seeds = range(seed + 1, seed + 1 + 2 * len(widths), 2)
    return [
        common @ random(factors, d, seed=77 + i) + noise * random(pairs, d, seed=s)
        for i, (d, s) in enumerate(zip(widths, seeds, strict=True))
    ]


def planted(pairs: int = 3_000, scale: float = 1.0, shift: float = 0.0) -> list[Tensor]:
    """A source, and an invertible affine map of it on another scale."""
    a = random(pairs, 8, seed=0)
    turn = torch.linalg.qr(random(8, 8, seed=1)).Q
    return [a, scale * a @ turn.T + shift]


def split(data: list[Tensor], held_out: int = 1_000) -> tuple[TensorStream, TensorStream]:
    return (
        TensorStream([x[:-held_out] for x in data], seed=1),
        TensorStream([x[-held_out:] for x in data]),
    )


def fit(data: list[Tensor], held_out: int = 1_000, sources=(), text=None, **options) -> Stitching:
    cfg = StitchingConfig(**{**QUICK, "outlier_multiple": 0.0, **options})
    return fit_stitching(*split(data, held_out), cfg, sources=sources, text=text)


def r2(x: Tensor, x_hat: Tensor) -> float:
    return 1 - ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()


def least_squares(read: Tensor, written: Tensor) -> AffineMap:
    design = np.hstack([read.double().numpy(), np.ones((len(read), 1))])
    solved = torch.from_numpy(np.linalg.lstsq(design, written.double().numpy(), rcond=None)[0])
    return AffineMap(solved[:-1].T.float(), solved[-1].float())


# Known maps


@pytest.mark.parametrize("init, steps", [("closed_form", 50), ("random", 300)])
def test_a_planted_map_is_recovered(init, steps):
    a, b = planted(scale=20.0, shift=5.0)
    stitching = fit([a, b], init=init, steps=steps, learning_rate=0.02, ridge=1e-8)
    assert r2(b, stitching.point(a, 0)) > 0.9999 and r2(a, stitching.point(b, 1)) > 0.9999
    exact = least_squares(a, b)
    torch.testing.assert_close(stitching.maps[0].weight, exact.weight, atol=0.1, rtol=0.01)
    assert all(trip["r2"] > 0.9999 for trip in stitching.report["round_trips"])
    assert all(one["r2"] > 0.9999 for one in stitching.report["directions"])


def test_without_steps_and_penalty_the_maps_are_those_of_least_squares():
    data = views()
    stitching = fit(data, steps=0, ridge=1e-10)
    fitted = [x[:-1_000] for x in data]
    for s in (0, 1):
        exact = least_squares(fitted[s], fitted[1 - s])
        torch.testing.assert_close(stitching.maps[s].weight, exact.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(stitching.maps[s].bias, exact.bias, atol=1e-5, rtol=1e-3)
        assert stitching.report["directions"][s]["difference"] == 0


@pytest.mark.parametrize(
    "widths, options",
    [
        ((12, 9), {}),
        ((40, 7), {}),
        ((6, 32), {}),
        ((12, 9), {"init": "random", "steps": 400, "learning_rate": 0.03}),
    ],
)
def test_trained_maps_explain_what_the_closed_form_does(widths, options):
    stitching = fit(views(widths=widths), inversion_weight=0.03, **options)
    for one in stitching.report["directions"]:
        assert one["r2_closed_form"] > 0.5
        assert abs(one["difference"]) < 0.01


def test_the_report_is_that_of_the_raw_maps_on_the_held_out_pairs():
    data = views()
    data[1] = data[1] * 30 + 200
    stitching = fit(data)
    held_out = [x[-1_000:] for x in data]
    fitted = [x[:-1_000] for x in data]
    for s in (0, 1):
        scores, x = stitching.report["directions"][s], held_out[1 - s]
        mapped = stitching.point(held_out[s], s)
        assert (scores["from"], scores["to"]) == (s, 1 - s)
        assert scores["r2"] == pytest.approx(r2(x, mapped), abs=1e-5)
        exact = least_squares(fitted[s], fitted[1 - s])(held_out[s])
        assert scores["r2_closed_form"] == pytest.approx(r2(x, exact), abs=1e-3)
        shares = [r2(x[:, i : i + 1], mapped[:, i : i + 1]) for i in range(x.shape[1])]
        assert scores["r2_per_dimension"] == pytest.approx(shares, abs=1e-4)
        small = x.var(0).argsort(descending=True)[5:]
        without = r2(x[:, small], mapped[:, small])
        assert scores["r2_without_top5"] == pytest.approx(without, abs=1e-5)
        trip = stitching.report["round_trips"][s]
        assert (trip["source"], trip["through"]) == (s, 1 - s)
        there_and_back = stitching.point(stitching.point(held_out[s], s), 1 - s)
        assert trip["r2"] == pytest.approx(r2(held_out[s], there_and_back), abs=1e-5)
    assert (stitching.report["pairs"], stitching.report["held_out_pairs"]) == (4_000, 1_000)


def test_inversion_improves_the_round_trips_and_costs_some_of_what_is_explained():
    data = views(noise=1.5)
    reports = [fit(data, inversion_weight=weight).report for weight in (0.0, 0.3, 3.0)]
    for s in (0, 1):
        trips = [report["round_trips"][s]["r2"] for report in reports]
        explained = [report["directions"][s]["r2"] for report in reports]
        assert trips[0] + 0.02 < trips[1] < trips[2]
        assert explained[0] > explained[1] > explained[2]


def test_the_loss_is_that_of_two_maps_and_two_round_trips():
    maps = [
        AffineMap(torch.tensor([[2.0], [0.0]]), torch.tensor([0.0, 1.0])),
        AffineMap(torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0])),
    ]
    batch = [torch.tensor([[1.0]]), torch.tensor([[3.0, 3.0]])]
    # There: (2, 1) for (3, 3), and 2 for 1. There and back: 1 for 1, and (4, 1) for (3, 3).
    assert stitching_loss(maps, batch, 0.0).item() == pytest.approx((5 + 1) / 1.5)
    assert stitching_loss(maps, batch, 0.5).item() == pytest.approx((5 + 1 + 0.5 * (0 + 5)) / 1.5)


# Points and directions


@pytest.fixture(scope="module")
def stitched() -> Stitching:
    return fit(views(), steps=20)


@settings(max_examples=30, deadline=None)
@given(source=st.sampled_from([0, 1]), seed=st.integers(0, 10**6), lead=st.sampled_from([(), (3,)]))
def test_a_direction_is_what_adding_it_does_to_a_point(stitched, source, seed, lead):
    width = (12, 9)[source]
    x, v = random(*lead, width, seed=seed), random(*lead, width, seed=seed + 1)
    difference = stitched.point(x + v, source) - stitched.point(x, source)
    torch.testing.assert_close(stitched.direction(v, source), difference, atol=1e-4, rtol=1e-3)
    with_bias = stitched.direction(v, source, bias=True)  # equation 18
    assert torch.equal(with_bias, stitched.point(v, source))
    assert with_bias.shape == (*lead, (9, 12)[source])


def test_the_dtype_of_what_is_mapped_is_kept(stitched):
    x = random(4, 12, seed=0)
    half = stitched.point(x.bfloat16(), 0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), stitched.point(x, 0), atol=0.2, rtol=0.05)


def test_other_widths_and_sources_are_refused(stitched):
    with pytest.raises(ValueError, match=r"Source 0 is 12 wide, got .*\[4, 9\]"):
        stitched.point(torch.zeros(4, 9), 0)
    with pytest.raises(ValueError, match="12 wide"):
        stitched.direction(torch.tensor(1.0), 0)
    with pytest.raises(ValueError, match="joins sources 0 and 1; there is no map from source 2"):
        stitched.direction(torch.zeros(12), 2)
    assert (stitched.width(0), stitched.width(1)) == (12, 9)
    assert (stitched.other(0), stitched.other(1)) == (1, 0)


def test_two_of_three_sources_keep_their_numbers():
    data = views(widths=(12, 5, 9))
    described = [
        {"name": f"m{i}", "hookpoint": "h.1", "width": w} for i, w in enumerate((12, 5, 9))
    ]
    stitching = fit(data, sources=described, steps=50)
    assert [source["name"] for source in stitching.sources] == ["m0", "m1"]
    cfg = StitchingConfig(sources=(2, 0), steps=50)
    other = fit_stitching(*split(data), cfg, sources=described)
    assert [source["name"] for source in other.sources] == ["m2", "m0"]
    assert r2(data[0], other.point(data[2], 2)) > 0.5
    assert other.point(data[0], 0).shape == data[2].shape
    assert other.report["directions"][0]["from"] == 2 and other.other(2) == 0
    with pytest.raises(ValueError, match="joins sources 2 and 0"):
        other.point(data[1], 1)


# Scales, outliers, rank


def test_scales_and_means_do_not_matter():
    data = views()
    shifted = [data[0] * 1e-3 + 5, data[1] * 1e4 - 1e6]
    plain, moved = fit(data), fit(shifted)
    for one, other in zip(plain.report["directions"], moved.report["directions"], strict=True):
        assert other["r2"] == pytest.approx(one["r2"], abs=2e-3)
        assert other["difference"] == pytest.approx(one["difference"], abs=2e-3)
    held_out = [x[-1_000:] for x in shifted]
    mapped = r2(held_out[1], moved.point(held_out[0], 0))
    assert mapped == pytest.approx(plain.report["directions"][0]["r2"], abs=5e-3)


def test_outliers_are_left_out_as_in_training():
    data = views()
    norms = [x.norm(dim=1) for x in data]
    data = [x[(norms[0] < 30) & (norms[1] < 30)] for x in data]
    clean = fit(data, outlier_multiple=20.0)
    spoiled = [x.clone() for x in data]
    spoiled[0][100:110] *= 1e4
    spoiled[1][-5:] *= 1e4
    with_outliers = fit(spoiled, outlier_multiple=20.0)
    report = with_outliers.report
    assert (report["outliers"], report["held_out_outliers"]) == (10, 5)
    assert report["pairs"] == clean.report["pairs"] - 10
    assert report["held_out_pairs"] == clean.report["held_out_pairs"] - 5
    for one, other in zip(clean.report["directions"], report["directions"], strict=True):
        assert other["r2"] == pytest.approx(one["r2"], abs=0.01)


def test_fewer_pairs_than_dimensions_still_give_finite_maps_no_worse_than_the_closed_form():
    data = views(pairs=1_060, widths=(100, 80), factors=10)
    stitching = fit(data, inversion_weight=0.03, ridge=1e-3)
    assert stitching.report["pairs"] == 60
    for one in stitching.report["directions"]:
        assert one["r2"] > one["r2_closed_form"] - 0.01 > 0.3
    assert all(part.isfinite().all() for one in stitching.maps.values() for part in one)


def test_constant_and_duplicated_dimensions_do_no_harm():
    data = views()
    plain = fit(data)
    constant = torch.full((len(data[0]), 1), 7.0)
    odd = [torch.cat([data[0], data[0][:, :2], constant], 1), torch.cat([data[1], constant], 1)]
    stitching = fit(odd)
    for one, other in zip(plain.report["directions"], stitching.report["directions"], strict=True):
        assert abs(other["difference"]) < 0.01
        assert other["r2"] > one["r2"] - 0.02
    assert stitching.report["directions"][0]["r2_per_dimension"][-1] is None
    torch.testing.assert_close(stitching.point(odd[0], 0)[:, -1:], constant, atol=1e-2, rtol=0)
    json.dumps(stitching.report, allow_nan=False)


def test_moments_of_batches_are_those_of_all_pairs(monkeypatch):
    data = [x * 3 + 100 for x in views()]
    normalization = Normalization.estimate(data)
    whole = closed_form(NormalizedPairs(TensorStream(data), (0, 1), normalization, 0.0), ridge=1e-8)
    monkeypatch.setattr("sparsify_crosscoder.interventions.affine_maps.BATCH_PAIRS", 100)
    parts = closed_form(NormalizedPairs(TensorStream(data), (0, 1), normalization, 0.0), ridge=1e-8)
    assert whole[1] == parts[1] == 5_000
    for one, other in zip(whole[0], parts[0], strict=True):
        torch.testing.assert_close(one.weight, other.weight, atol=1e-6, rtol=1e-5)


# What is refused


@pytest.mark.parametrize("where", ["fitted", "held_out"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_name(where, value):
    data = views(widths=(5, 4, 3))
    data[2][0 if where == "fitted" else -1, 1] = value
    cfg = StitchingConfig(sources=(0, 2), steps=5)
    with pytest.raises(ValueError, match="Source 2 has activations that are NaN or infinite"):
        fit_stitching(*split(data), cfg)


def test_too_few_pairs_other_widths_and_unknown_sources_are_refused():
    data = views()
    with pytest.raises(ValueError, match="There are 99 held-out pairs, and 100 are needed"):
        fit(data, held_out=99)
    with pytest.raises(ValueError, match=r"One pair is not enough .* 120 here"):
        fit(data, held_out=4_999)
    with pytest.raises(ValueError, match=r"no sources \[0, 2\]"):
        fit_stitching(*split(data), StitchingConfig(sources=(0, 2)))
    pairs, held_out = split(data)[0], split(views(widths=(12, 8)))[1]
    with pytest.raises(ValueError, match=r"widths \[12, 8\], those to fit \[12, 9\]"):
        fit_stitching(pairs, held_out)
    with pytest.raises(ValueError, match=r"described as \[3, 9\] wide, but"):
        fit(data, sources=[{"width": 3}, {"width": 9}])


def test_a_constant_source_is_refused():
    data = views()
    data[1] = torch.ones_like(data[1])
    with pytest.raises(ValueError, match="Source 1 has the same activation"):
        fit(data)


def test_a_learning_rate_that_is_too_large_is_named():
    with pytest.raises(ValueError, match=r"lower the learning rate \(1e\+20\)"):
        fit(views(), learning_rate=1e20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sources": (1, 1)},
        {"sources": (-1, 0)},
        {"sources": (0,)},
        {"ridge": 0.0},
        {"learning_rate": 0.0},
        {"pairs_per_step": 0},
        {"steps": -1},
        {"inversion_weight": float("nan")},
        {"init": "zeros"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong) + "|two different sources"):
        StitchingConfig(**wrong)


# On disk


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path):
    described = [{"name": "a", "hookpoint": "h.1", "width": 12}, {"name": "b", "width": 9}]
    stitching = fit(views(), sources=described, text={"fingerprint": "f"}, steps=20)
    folder = tmp_path / "new" / "stitching"
    stitching.save(folder)
    assert {path.name for path in folder.iterdir()} == {"stitching.safetensors", "cfg.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["stitching"]
    loaded = Stitching.load(folder)
    for source, one in stitching.maps.items():
        assert all(torch.equal(x, y) for x, y in zip(one, loaded.maps[source], strict=True))
    assert (loaded.cfg, loaded.sources) == (stitching.cfg, described)
    assert (loaded.text, loaded.report) == ({"fingerprint": "f"}, stitching.report)
    x = random(5, 12, seed=0)
    assert torch.equal(loaded.point(x, 0), stitching.point(x, 0))


def test_an_older_stitching_is_replaced_and_anything_else_is_not(tmp_path, stitched):
    (tmp_path / "empty").mkdir()
    stitched.save(tmp_path / "empty")
    other = fit(views(), steps=0)
    other.save(tmp_path / "empty")
    again = Stitching.load(tmp_path / "empty")
    assert torch.equal(again.maps[0].weight, other.maps[0].weight)
    for name, content in (("cfg.json", '{"arch": "dfc"}'), ("notes.txt", "mine"), ("cfg.json", "")):
        folder = tmp_path / "else"
        folder.mkdir()
        (folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="holds something else than a stitching"):
            stitched.save(folder)
        assert [path.read_text(encoding="utf-8") for path in folder.iterdir()] == [content]
        shutil.rmtree(folder)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        stitched.save(tmp_path / "file")


def test_a_folder_without_a_whole_stitching_is_refused_with_the_reason(tmp_path, stitched):
    with pytest.raises(FileNotFoundError, match=r"holds no stitching: there is no cfg\.json"):
        Stitching.load(tmp_path / "nowhere")
    folder = tmp_path / "stitching"
    stitched.save(folder)
    config, weights = folder / "cfg.json", folder / "stitching.safetensors"
    whole, data = config.read_text(encoding="utf-8"), weights.read_bytes()
    weights.write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"damaged \(it is not the file that"):
        Stitching.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"stitching\.safetensors' is missing"):
        Stitching.load(folder)
    weights.write_bytes(data)
    for change, complaint in (
        ({"kind": "other"}, "holds something else than a stitching"),
        ({"config": {"unknown": 1}}, "damaged"),
    ):
        config.write_text(json.dumps(json.loads(whole) | change), encoding="utf-8")
        with pytest.raises(ValueError, match=complaint):
            Stitching.load(folder)
    config.write_text(whole[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match=r"cfg\.json' is damaged"):
        Stitching.load(folder)
