import json

import pytest
import torch

from sparsify_crosscoder import RDFCConfig, ResidualDedicatedFeatureCrosscoder
from sparsify_crosscoder.crosscoders.starts import ALIKE
from tests.support.crosscoders import make
from tests.support.rare_differences import with_rare_differences


def correlated(pairs=4_000, widths=(5, 4, 3), seed=0):
    """Normalised pairs of sources that share three directions, `[N, d_in]`, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    common, x = draw(pairs, 3), draw(pairs, sum(widths))
    return 0.3 * x + common @ draw(3, sum(widths))


def residual_dfc(widths=(5, 4, 3), **options):
    torch.manual_seed(0)
    cfg = RDFCConfig(num_latents=30, k=4, exclusive_fractions=[0.2] * len(widths), **options)
    return ResidualDedicatedFeatureCrosscoder(widths, cfg, dtype=torch.float64)


def test_the_maps_are_those_of_least_squares_from_all_other_sources():
    crosscoder, x = residual_dfc(map_ridge=1e-12), correlated()
    crosscoder.fit_maps(x.split(700))
    centred = x - x.mean(0)
    for s, columns in enumerate(crosscoder.columns):
        others = [i for i in range(12) if not columns.start <= i < columns.stop]
        expected = torch.linalg.lstsq(centred[:, others], centred[:, columns]).solution
        torch.testing.assert_close(crosscoder.maps[others, columns], expected, rtol=1e-6, atol=1e-8)
        assert not crosscoder.maps[columns, columns].any()
        torch.testing.assert_close(
            crosscoder.unpredicted(x, s),
            x[:, columns] - x[:, others] @ crosscoder.maps[others, columns],
        )


def test_a_larger_penalty_predicts_less():
    x = correlated()
    kept = []
    for ridge in (1e-6, 1.0, 100.0):
        crosscoder = residual_dfc(map_ridge=ridge)
        crosscoder.fit_maps([x])
        kept.append(crosscoder.unpredicted(x, 0).norm().item())
    assert kept == sorted(kept)


def test_exclusive_latents_read_only_what_is_not_predicted_and_shared_ones_all():
    crosscoder, x = residual_dfc(), correlated()
    crosscoder.fit_maps([x])
    inputs = crosscoder.block_inputs(x)
    for s, block in enumerate(crosscoder.partition.blocks[:3]):
        assert block.sources == (s,)
        left = crosscoder.unpredicted(x, s)
        assert left.norm() < 0.5 * x[:, crosscoder.columns[s]].norm()
        torch.testing.assert_close(inputs[s], left @ crosscoder.whitening(s))
    assert torch.equal(inputs[3], x)


def test_what_they_read_is_white():
    crosscoder, x = residual_dfc(), correlated()
    crosscoder.fit_maps(x.split(900))
    for s, width in enumerate(crosscoder.d_sources):
        covariance = torch.cov(crosscoder.block_inputs(x)[s].T, correction=0)
        torch.testing.assert_close(covariance, torch.eye(width).double(), rtol=0, atol=0.02)
        torch.testing.assert_close(crosscoder.whitening(s), crosscoder.whitening(s).T)


def test_where_all_is_predicted_nothing_is_blown_up():
    crosscoder = residual_dfc(widths=(5, 5), map_ridge=1e-9)
    x = correlated(widths=(5, 5))[:, :5]
    crosscoder.fit_maps([torch.cat([x, x], 1)])
    seen = crosscoder.block_inputs(torch.cat([x, x], 1))[0]
    assert seen.std() < 0.01


def test_latents_begin_where_pairs_stand_out_and_as_active_as_shared_ones():
    rare, directions = (part.double() for part in with_rare_differences(count=2, size=8.0))
    common = correlated(pairs=len(rare), widths=(40, 30, 50))
    x = torch.cat([rare / rare.std(), common[:, 40:] / common.std()], 1)
    crosscoder = residual_dfc(widths=(40, 30, 50))
    shared = [w[-1].clone() for w in (crosscoder.encoder.weights[3], crosscoder.decoders[3])]
    crosscoder.fit_maps([x])
    crosscoder.start_from(x)
    assert torch.equal(crosscoder.encoder.weights[3][-1], shared[0])
    assert torch.equal(crosscoder.decoders[3][-1], shared[1])
    written = torch.nn.functional.normalize(crosscoder.decoders[0], dim=1) @ directions.T
    assert written.max(0).values.min() > 0.95
    for decoder in crosscoder.decoders[:3]:
        norms = decoder.norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 0.4))
    spread = [
        (part @ weight.T).std().item()
        for part, weight in zip(
            crosscoder.block_inputs(x - x.mean(0)), crosscoder.encoder.weights, strict=True
        )
    ]
    assert spread[:3] == pytest.approx([spread[3]] * 3, rel=0.35)


def near_equal(change, pairs=4_000, width=30, seed=0):
    """Normalised pairs of a source and the same plus `change` [pairs, width], `[N, 2 width]`."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(pairs, width, generator=generator, dtype=torch.float64) @ mixed / width**0.5
    return torch.cat([x, x + change], 1)


def isolated(share, size, pairs=4_000, width=30):
    """A direction on a share of the pairs, `[pairs, width]`, and that direction."""
    direction = torch.nn.functional.normalize(torch.ones(width, dtype=torch.float64), dim=0)
    rare = torch.arange(pairs) % round(1 / share) == 0
    return size * rare[:, None] * direction, direction


@pytest.mark.parametrize("share", [0.01, 0.001])
def test_one_difference_of_models_that_are_equal_otherwise_gets_one_latent(share):
    change, direction = isolated(share, size=1.0)
    crosscoder, x = residual_dfc(widths=(30, 30)), near_equal(change)
    crosscoder.fit_maps([x])
    crosscoder.start_from(x)
    written = torch.nn.functional.normalize(crosscoder.decoders[1], dim=1) @ direction
    assert written.max() > 0.99
    assert (written > ALIKE).sum() == 1
    read = torch.nn.functional.normalize(crosscoder.encoder.weights[1], dim=1)
    assert (read @ read.T - torch.eye(6).double()).max() <= ALIKE


def started(seed, x):
    torch.manual_seed(seed)
    cfg = RDFCConfig(num_latents=100, k=4, exclusive_fractions=[0.2, 0.2])
    crosscoder = ResidualDedicatedFeatureCrosscoder([30, 30], cfg, dtype=torch.float64)
    crosscoder.fit_maps([x])
    crosscoder.start_from(x)
    return crosscoder.encoder.weights[0]


def test_where_latents_begin_follows_from_the_seed_of_the_crosscoder():
    generator = torch.Generator().manual_seed(1)
    x = near_equal(0.1 * torch.randn(4_000, 30, generator=generator, dtype=torch.float64))
    first, second, again = (started(seed, x) for seed in (0, 1, 0))
    assert torch.equal(first, again)
    cosines = torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second).T
    assert cosines.amax(1).median() < 0.95


def fitted(first, second, **options):
    """A residual DFC with maps between two sources [N, D] in units of their own."""
    parts = [first - first.mean(0), second - second.mean(0)]
    factors = [1 / part.std() for part in parts]
    cfg = RDFCConfig(num_latents=30, k=4, **options)
    widths = [part.shape[1] for part in parts]
    crosscoder = ResidualDedicatedFeatureCrosscoder(widths, cfg, dtype=torch.float64)
    crosscoder.set_normalization([x.mean(0) for x in (first, second)], torch.stack(factors))
    crosscoder.fit_maps([crosscoder.normalize([first, second])])
    return crosscoder


def test_a_model_and_the_same_with_noise_are_read_as_their_difference():
    first, second = near_equal(torch.zeros(4_000, 30).double()).chunk(2, 1)
    generator = torch.Generator().manual_seed(2)
    noise = 0.1 * torch.randn(4_000, 30, generator=generator, dtype=torch.float64)
    crosscoder = fitted(first, 2 + second + noise)
    assert crosscoder.fitted() == {"predicted_by": "identity"}
    left = crosscoder.unpredicted(crosscoder.normalize([first, 2 + second + noise]), 1)
    expected = (noise - noise.mean(0)) * crosscoder.factors[1]
    torch.testing.assert_close(left, expected, rtol=1e-3, atol=1e-4)
    by_maps = crosscoder.encoder_weight(0)[crosscoder.partition.exclusive(1).start]
    assert by_maps.any()


def test_the_same_in_another_basis_is_read_through_a_map():
    first, second = near_equal(torch.zeros(4_000, 30).double()).chunk(2, 1)
    rotation = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    crosscoder = fitted(first, second @ rotation)
    assert crosscoder.fitted() == {"predicted_by": "map"}
    left = crosscoder.unpredicted(crosscoder.normalize([first, second @ rotation]), 1)
    assert left.std() < 0.05
    assert fitted(first, second, predict_by="map").fitted() == {"predicted_by": "map"}


def test_models_of_other_widths_share_no_basis():
    first, second = near_equal(torch.zeros(4_000, 30).double()).chunk(2, 1)
    assert fitted(first, second[:, :20]).fitted() == {"predicted_by": "map"}
    cfg = RDFCConfig(num_latents=30, k=4, predict_by="identity")
    with pytest.raises(ValueError, match="share no basis"):
        ResidualDedicatedFeatureCrosscoder([30, 20], cfg)


def test_the_difference_is_that_to_the_mean_of_the_others_where_there_are_several():
    first, second = near_equal(torch.zeros(4_000, 4).double(), width=4).chunk(2, 1)
    crosscoder = residual_dfc(widths=(4, 4, 4))
    x = torch.cat([first, second + 0.1, first * 1.1], 1)
    crosscoder.fit_maps([x])
    assert crosscoder.fitted() == {"predicted_by": "identity"}
    expected = x[:, :4] - (x[:, 4:8] + x[:, 8:]) / 2
    torch.testing.assert_close(crosscoder.unpredicted(x, 0), expected)
    torch.testing.assert_close(x[:, :4] - x @ crosscoder.maps[:, :4], expected)


def test_what_was_decided_is_in_the_checkpoint_and_known_after_a_resume(tmp_path):
    first, second = near_equal(torch.zeros(4_000, 30).double()).chunk(2, 1)
    crosscoder = fitted(first, 1.1 * second)
    x = crosscoder.normalize([first, second])
    crosscoder.save_to_disk(tmp_path)
    loaded = ResidualDedicatedFeatureCrosscoder.load_from_disk(tmp_path)
    written = json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8"))
    assert (written["predicted_by"], written["predict_by"]) == ("identity", "auto")
    resumed = ResidualDedicatedFeatureCrosscoder([30, 30], crosscoder.cfg, dtype=torch.float64)
    resumed.load_state_dict(crosscoder.state_dict())
    for other in (loaded, resumed):
        assert isinstance(other, ResidualDedicatedFeatureCrosscoder)
        assert other.fitted() == {"predicted_by": "identity"}
        assert torch.equal(other.unpredicted(x, 1), crosscoder.unpredicted(x, 1))


def test_without_maps_it_is_a_dfc():
    crosscoder, x = residual_dfc(), correlated(20)
    torch.manual_seed(0)
    plain = make("dfc", {"num_latents": 30, "k": 4, "exclusive_fractions": [0.2] * 3}, 3)
    plain.cfg.num_latents = 30
    assert [len(b) for b in plain.partition.blocks] == [len(b) for b in crosscoder.partition.blocks]
    for part in crosscoder.block_inputs(x)[:3]:
        assert any(torch.equal(part, x[:, columns]) for columns in crosscoder.columns)


def test_pre_activations_are_the_sum_over_the_encoder_weights_of_the_sources():
    crosscoder, x = residual_dfc(), correlated(50)
    crosscoder.fit_maps([correlated()])
    crosscoder.encoder.bias.data.normal_()
    weight = torch.cat([crosscoder.encoder_weight(s) for s in range(3)], 1)
    expected = (x @ weight.T + crosscoder.encoder.bias).relu()
    torch.testing.assert_close(crosscoder.encode(x).pre_acts, expected)
    exclusive = crosscoder.partition.exclusive(0)
    assert crosscoder.encoder_weight(1)[exclusive.start : exclusive.stop].any()
    assert not crosscoder.decoder(1)[exclusive.start : exclusive.stop].any()


def test_the_maps_need_two_pairs():
    with pytest.raises(ValueError, match="two pairs at least"):
        residual_dfc().fit_maps([correlated(1)])


@pytest.mark.parametrize("option", [{"map_pairs": 0}, {"map_ridge": 0.0}])
def test_impossible_maps_are_refused(option):
    with pytest.raises(ValueError, match="must be positive"):
        RDFCConfig(**option)
