"""Scores of crosscoders whose decoders are set to known concepts."""

import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.evaluation.toy import ToyConfig, ToyModel, score

CFG = ToyConfig(num_concepts=20, width=40, exclusive_ratio=0.4, mean_active=3.0)
NUM_LATENTS, PER_SIDE = 40, 10


@pytest.fixture
def toy():
    return ToyModel(CFG, seed=1)


def crosscoder_of(toy, a=(), b=(), shared=()):
    """A DFC whose first latents of each block stand for some concepts; the others for nothing."""
    cfg = DFCConfig(num_latents=NUM_LATENTS, k=3, exclusive_fractions=[0.25, 0.25])
    crosscoder = DedicatedFeatureCrosscoder([40, 40], cfg)
    torch.manual_seed(0)
    with torch.no_grad():
        for decoder in crosscoder.decoders:
            decoder.copy_(torch.randn(decoder.shape))
        for decoder, concepts, source in zip(crosscoder.decoders, (a, b), (0, 1), strict=False):
            for row, concept in enumerate(concepts):
                decoder[row] = 3 * toy.concepts[source][concept]
        for row, concept in enumerate(shared):
            both = [toy.concepts[s][concept] for s in (0, 1)]
            crosscoder.decoders[2][row] = torch.cat(both)
    return crosscoder


def test_a_crosscoder_of_all_concepts_recovers_all(toy):
    crosscoder = crosscoder_of(toy, toy.exclusive(0), toy.exclusive(1), toy.shared)
    found = score(crosscoder, toy)
    assert found.recovery == found.shared_recovery == found.exclusive_recovery == 1
    assert found.exclusive_recall_per_source == [1, 1]
    # Six of the ten latents on each side stand for nothing.
    assert found.called_exclusive == 20
    assert found.false_positive_rate == pytest.approx(12 / 20)
    assert found.false_positives_nothing == pytest.approx(12 / 20)
    assert found.false_positives_shared == found.duplicates == found.missed_as_shared == 0
    assert [b["all"] for b in found.recovery_by_frequency] == [1] * 5


def test_an_exclusive_concept_counts_on_its_own_side_only(toy):
    crosscoder = crosscoder_of(toy, a=toy.exclusive(1), b=toy.exclusive(1)[:2])
    found = score(crosscoder, toy)
    assert found.exclusive_recall_per_source == [0, 0.5]
    assert found.exclusive_recovery_per_source == [0, 0.5]
    assert found.exclusive_recall == 0.25


def test_shared_concepts_on_exclusive_latents_are_false_and_duplicates_on_both_sides(toy):
    crosscoder = crosscoder_of(toy, a=toy.shared[:3], b=toy.shared[2:4])
    found = score(crosscoder, toy)
    assert found.shared_recovery == 0  # no latent has both directions
    assert found.false_positive_rate == 1
    assert found.false_positives_shared == pytest.approx(5 / 20)
    assert found.false_positives_nothing == pytest.approx(15 / 20)
    assert found.duplicates == pytest.approx(1 / len(toy.shared))


def test_a_shared_latent_hides_an_exclusive_concept(toy):
    crosscoder = crosscoder_of(toy)
    with torch.no_grad():
        crosscoder.decoders[2][0, :40] = 6 * toy.concepts[0][toy.exclusive(0)[1]]
    found = score(crosscoder, toy)
    assert found.missed_as_shared == pytest.approx(1 / 20)
    assert found.exclusive_recovery == pytest.approx(1 / 8)
    assert found.exclusive_recall == 0


def test_the_sign_and_the_threshold_of_the_cosine_count(toy):
    crosscoder = crosscoder_of(toy, a=toy.exclusive(0))
    with torch.no_grad():
        crosscoder.decoders[0][0] *= -1
        other = torch.nn.functional.normalize(torch.randn(40), dim=0)
        concept = toy.concepts[0][1]
        other -= (other @ concept) * concept
        crosscoder.decoders[0][1] = 0.79 * concept + (1 - 0.79**2) ** 0.5 * other / other.norm()
    assert score(crosscoder, toy).exclusive_recall_per_source[0] == 0.5
    assert score(crosscoder, toy, threshold=0.78).exclusive_recall_per_source[0] == 0.75


def test_only_what_is_alive_and_called_exclusive_counts(toy):
    crosscoder = crosscoder_of(toy, toy.exclusive(0), toy.exclusive(1), toy.shared)
    alive = torch.zeros(NUM_LATENTS, dtype=torch.bool)
    alive[:2] = True
    found = score(crosscoder, toy, alive=alive)
    assert found.exclusive_recall_per_source == [0.5, 0]
    assert (found.called_exclusive, found.false_positive_rate) == (2, 0)
    chosen = score(crosscoder, toy, [torch.tensor([1, 5]), torch.tensor([], dtype=torch.long)])
    assert chosen.exclusive_recall_per_source == [0.25, 0]
    assert chosen.false_positive_rate == 0.5
    nothing = score(crosscoder, toy, [torch.tensor([], dtype=torch.long)] * 2)
    assert (nothing.called_exclusive, nothing.false_positive_rate) == (0, 0)


def test_recovery_is_shown_by_frequency_rarest_first(toy):
    rare = toy.probabilities.argsort()[:4].tolist()
    crosscoder = crosscoder_of(
        toy,
        [c for c in rare if c in toy.exclusive(0)],
        [c for c in rare if c in toy.exclusive(1)],
        [c for c in rare if c in toy.shared],
    )
    bins = score(crosscoder, toy).recovery_by_frequency
    assert [b["all"] for b in bins] == [1, 0, 0, 0, 0]
    frequencies = [b["frequency"] for b in bins]
    assert frequencies == sorted(frequencies)
