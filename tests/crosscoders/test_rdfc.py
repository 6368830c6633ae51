import pytest
import torch

from sparsify_crosscoder import RDFCConfig, ResidualDedicatedFeatureCrosscoder
from sparsify_crosscoder.crosscoders.rdfc import standing_out
from tests.support.crosscoders import make


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


def with_rare_differences(count, size, pairs=6_000, width=40, share=0.01):
    """White pairs, and directions along each of which a share lies `size` deviations out."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    mixed = torch.randn(width, count, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(mixed).Q.T
    for direction in directions:
        rare = torch.rand(pairs, 1, generator=generator) < share
        x += size * rare * direction
    return x - x.mean(0), directions


def test_the_search_finds_what_stands_out_on_a_hundredth_of_the_pairs():
    x, directions = with_rare_differences(count=6, size=6.0)
    found, strength = standing_out(x, 20)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20).double())
    cosines = directions @ found.T
    assert cosines.max(1).values.median() > 0.95 and cosines.max(1).values.min() > 0.85
    assert len(set(cosines.argmax(1).tolist())) == 6
    assert strength.shape == (len(x), 20) and strength.min() == 0
    along = x @ found.T
    assert ((along > along.quantile(0.991, dim=0)) <= (strength > 0)).all()


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
def test_the_search_finds_a_difference_that_more_pairs_have(share):
    x, directions = with_rare_differences(count=1, size=5.0, width=200, share=share)
    found, _ = standing_out(x, 20)
    assert (directions @ found.T).max() > 0.75


def test_the_search_gives_as_many_directions_as_asked_for():
    x, _ = with_rare_differences(count=1, size=3.0, pairs=30, width=4)
    found, _ = standing_out(x, 50)
    assert found.shape == (50, 4) and found.isfinite().all()


def test_latents_begin_where_pairs_stand_out_and_as_active_as_shared_ones():
    rare, directions = with_rare_differences(count=2, size=8.0)
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
