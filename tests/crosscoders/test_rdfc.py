import pytest
import torch
from crosscoders.test_gradients import make

from sparsify_crosscoder import RDFCConfig, ResidualDedicatedFeatureCrosscoder
from sparsify_crosscoder.crosscoders.rdfc import MAX_BOOST


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
        assert torch.equal(inputs[s], crosscoder.unpredicted(x, s))
        assert inputs[s].norm() < 0.5 * x[:, crosscoder.columns[s]].norm()
    assert torch.equal(inputs[3], x)


def test_exclusive_latents_are_as_active_as_shared_ones_before_training():
    crosscoder, x = residual_dfc(widths=(40, 30, 50)), correlated(widths=(40, 30, 50))
    x += torch.randn(x.shape, generator=torch.Generator().manual_seed(1))  # not predicted away
    crosscoder.fit_maps([x])
    spread = [
        (part @ weight.T).std().item()
        for part, weight in zip(
            crosscoder.block_inputs(x - x.mean(0)), crosscoder.encoder.weights, strict=True
        )
    ]
    assert spread[:3] == pytest.approx([spread[3]] * 3, rel=0.3)


def test_where_all_is_predicted_exclusive_latents_stay_quiet():
    crosscoder = residual_dfc(widths=(5, 5))
    x = correlated(widths=(5, 5))
    before = [weight.norm().item() for weight in crosscoder.encoder.weights]
    crosscoder.fit_maps([torch.cat([x[:, :5], x[:, :5]], 1)])
    after = [weight.norm().item() for weight in crosscoder.encoder.weights]
    assert after == pytest.approx([MAX_BOOST * before[0], MAX_BOOST * before[1], before[2]])


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
