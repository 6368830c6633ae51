import pytest
import torch

from sparsify_crosscoder.evaluation.clusters import clusters, duplicates
from tests.support.clusters import PAIRS, copied_latents, filtered


@pytest.fixture
def crosscoder():
    return copied_latents()


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
