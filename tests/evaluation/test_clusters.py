import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.evaluation.clusters import clusters, duplicates
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig, filter_exclusives
from sparsify_crosscoder.store.tensor_stream import TensorStream

PAIRS = 8_000


@pytest.fixture
def crosscoder():
    """Latents 0 and 1 of the first source are copies, 2 stands alone; 5 and 6 are the second's."""
    cfg = DFCConfig(num_latents=20, k=4, exclusive_fractions=[0.25, 0.25], screening="exact")
    crosscoder = DedicatedFeatureCrosscoder([6, 6], cfg).eval()
    with torch.no_grad():
        for weight in (*crosscoder.encoder.weights, *crosscoder.decoders):
            weight.zero_()
        for block, latent, column, size in (
            (0, 0, 0, 1.0),
            (0, 1, 0, 3.0),
            (0, 2, 1, 1.0),
            (1, 0, 2, 1.0),
            (1, 1, 3, 1.0),
        ):
            crosscoder.encoder.weights[block][latent, column] = 1.0
            crosscoder.decoders[block][latent, column] = size
        crosscoder.decoders[0][0, 5] = 4.0
        crosscoder.encoder.bias[:10] = -0.5
        crosscoder.threshold.fill_(1e-3)
    return crosscoder


def filtered(crosscoder, **options):
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(PAIRS, 3, generator=generator) < 0.08
    size = 1 + torch.rand(PAIRS, 3, generator=generator)
    events = active * size
    a, b = (0.05 * torch.randn(PAIRS, 6, generator=generator) for _ in "ab")
    a[:, 0], a[:, 1] = a[:, 0] + events[:, 0], a[:, 1] + events[:, 1]
    # The second source has the second event too, and a third one, which is harder to tell.
    b[:, 2], b[:, 3] = b[:, 2] + events[:, 1], b[:, 3] + 0.6 * events[:, 2]
    cfg = FilterConfig(pairs=PAIRS, outlier_multiple=0, **options)
    candidates = [torch.arange(3), torch.arange(5, 7)]
    return filter_exclusives(crosscoder, TensorStream([a, b]), cfg, candidates=candidates)


def test_copies_are_one_cluster_with_what_they_write_together(crosscoder):
    found = clusters(crosscoder, filtered(crosscoder))
    assert [(cluster.source, cluster.latents) for cluster in found] == [(0, [0, 1]), (1, [6])]
    # Decoders (1, .., 4) and (3, .., 0) of equal activations.
    expected = torch.tensor([4.0, 0, 0, 0, 0, 4.0]) / 32**0.5
    torch.testing.assert_close(found[0].direction, expected, atol=1e-3, rtol=0)
    assert 1 >= found[0].score > found[1].score > 0
    assert [cluster.dense for cluster in found] == [False, False]
    assert found[0].firings == pytest.approx(0.08 * PAIRS, rel=0.1)


def test_the_energy_of_a_cluster_is_that_of_the_sum(crosscoder):
    judged = filtered(crosscoder)
    together = clusters(crosscoder, judged)[0]
    alone = clusters(crosscoder, judged, threshold=1.1)
    assert [cluster.latents for cluster in alone if cluster.source == 0] == [[0], [1]]
    # Squared norms 17 and 9 apart, 32 together.
    energy = {tuple(cluster.latents): cluster.energy for cluster in (together, *alone)}
    assert energy[0, 1] / energy[0,] == pytest.approx(32 / 17, rel=1e-3)
    assert energy[0,] / energy[1,] == pytest.approx(17 / 9, rel=1e-3)


def test_a_difference_counts_as_present_from_half_its_strength(crosscoder):
    judged = filtered(crosscoder)
    found = clusters(crosscoder, judged)[0]
    # Decoders (1, .., 4) and (3, .., 0) along (1, .., 1) / sqrt(2).
    assert sorted(found.weights) == pytest.approx([3 / 2**0.5, 5 / 2**0.5], rel=1e-3)
    # Activations z are uniform from 0.5 to 1.5, so E[z^2] / E[z] = 13 / 12.
    assert found.level == pytest.approx(0.5 * 8 / 2**0.5 * 13 / 12, rel=0.02)


def test_what_fires_on_over_a_tenth_of_the_pairs_comes_last(crosscoder):
    with torch.no_grad():
        crosscoder.encoder.bias[0] = 0.0  # fires on its event and on half of the noise
    judged = filtered(crosscoder)
    found = clusters(crosscoder, judged)
    assert judged.dense.tolist() == [True, False, False, False, False]
    assert judged.order()[-1] == 0
    assert [(cluster.latents, cluster.dense) for cluster in found] == [([6], False), ([0, 1], True)]
    assert found[0].score < found[1].score


def test_one_concept_on_two_sides_is_a_duplicate(crosscoder):
    found = duplicates(filtered(crosscoder))
    assert [pair["latents"] for pair in found] == [[2, 5]]
    assert found[0]["sources"] == [0, 1] and found[0]["correlation"] > 0.95


def test_what_is_active_together_is_unknown_after_several_passes(crosscoder):
    judged = filtered(crosscoder, memory=1.0)
    for ask in (lambda: clusters(crosscoder, judged), lambda: duplicates(judged)):
        with pytest.raises(ValueError, match="more memory"):
            ask()
