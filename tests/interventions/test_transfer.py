"""Transfer by shared latents, against equations 13 to 17 worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify_crosscoder.config import CrosscoderConfig
from sparsify_crosscoder.crosscoders import Crosscoder, DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.interventions.transfer import (
    random_transfers,
    shared_latents,
    transfer,
)


@pytest.fixture
def crosscoder():
    """Widths 2 and 3; latent 0 is A's, latent 1 is B's, 2 to 4 are shared."""
    cfg = DFCConfig(num_latents=5, k=1, exclusive_fractions=[0.2, 0.2])
    crosscoder = DedicatedFeatureCrosscoder([2, 3], cfg)
    assert list(crosscoder.partition.shared) == [2, 3, 4]
    with torch.no_grad():
        crosscoder.decoders[0].copy_(torch.tensor([[1.0, 0.0]]))
        crosscoder.decoders[-1].copy_(
            torch.tensor(
                [[3.0, 0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 1.0, 0.0], [-1.0, -1.0, 0.0, 0.0, 9.0]]
            )
        )
    crosscoder.set_normalization([torch.zeros(2), torch.zeros(3)], torch.tensor([2.0, 0.5]))
    return crosscoder


def test_the_weighted_average_of_the_aligned_latents(crosscoder):
    """cos = .8 and .6, so the average is (.8, .6, 0) / 1.4, and its length |v| = 5 stays."""
    found = transfer(crosscoder, torch.tensor([4.0, 3.0]), num_latents=2, norm="raw")
    assert found.latents == [2, 3]
    assert found.cosines == pytest.approx([0.8, 0.6])
    torch.testing.assert_close(found.vector, torch.tensor([4.0, 3.0, 0.0]))
    assert [row["weight"] for row in found.rows()] == pytest.approx([0.8 / 1.4, 0.6 / 1.4])


def test_the_length_is_kept_in_multiples_of_each_models_activations(crosscoder):
    vector = torch.tensor([4.0, 3.0])
    found = transfer(crosscoder, vector, num_latents=2)
    # In normalised space A's vector has length 5 * 2, and B's is divided by 0.5 to be raw.
    assert found.vector.norm().item() == pytest.approx(20.0)
    raw = transfer(crosscoder, vector, num_latents=2, norm="raw")
    torch.testing.assert_close(found.vector / 4, raw.vector)


def test_the_other_direction(crosscoder):
    found = transfer(crosscoder, torch.tensor([0.0, 1.0, 0.0]), 1, 0, num_latents=1, norm="raw")
    assert found.latents == [3]
    torch.testing.assert_close(found.vector, torch.tensor([0.0, 1.0]))


def test_exclusive_latents_are_never_used(crosscoder):
    found = transfer(crosscoder, torch.tensor([1.0, 0.0]), num_latents=1)
    assert found.latents == [2]  # latent 0 is as aligned, but A's alone


def test_a_crosscoder_without_exclusive_blocks_shares_by_relative_norm():
    crosscoder = Crosscoder([2, 2], CrosscoderConfig(num_latents=3, k=1))
    with torch.no_grad():
        crosscoder.decoders[0].copy_(
            torch.tensor([[1.0, 0.0, 0.0, 0.1], [1.0, 0.0, 0.0, 1.0], [0.1, 0.0, 0.0, 1.0]])
        )
    assert shared_latents(crosscoder, 0, 1).tolist() == [1]


def test_too_few_aligned_latents_are_an_error(crosscoder):
    with pytest.raises(ValueError, match="only 2 point"):
        transfer(crosscoder, torch.tensor([4.0, 3.0]), num_latents=3)


@pytest.mark.parametrize(("source", "target"), [(0, 0), (0, 2), (-1, 1)])
def test_impossible_directions_are_refused(crosscoder, source, target):
    with pytest.raises(ValueError, match="from one of the sources"):
        transfer(crosscoder, torch.ones(2), source, target)


def test_a_vector_of_the_other_model_is_refused(crosscoder):
    with pytest.raises(ValueError, match="source 0 has width 2"):
        transfer(crosscoder, torch.ones(3), 0, 1)


def test_explanations_stand_beside_the_latents(crosscoder):
    found = transfer(crosscoder, torch.tensor([4.0, 3.0]), num_latents=2)
    table = found.table({2: "text about cats"})
    assert "text about cats" in table.splitlines()[1] and "(none)" in table.splitlines()[2]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), length=st.floats(0.1, 100))
def test_scaling_a_vector_scales_its_transfer(seed, length):
    torch.manual_seed(seed)
    cfg = DFCConfig(num_latents=60, k=4, exclusive_fractions=[0.1, 0.1])
    crosscoder = DedicatedFeatureCrosscoder([6, 9], cfg)
    vector = torch.randn(6)
    one = transfer(crosscoder, vector, num_latents=5)
    scaled = transfer(crosscoder, vector * length, num_latents=5)
    assert one.latents == scaled.latents
    torch.testing.assert_close(scaled.vector, one.vector * length, rtol=1e-4, atol=1e-4)
    assert scaled.vector.norm().item() == pytest.approx(float(vector.norm()) * length, rel=1e-4)


def test_controls_are_other_shared_latents_of_the_same_length():
    torch.manual_seed(0)
    cfg = DFCConfig(num_latents=60, k=4, exclusive_fractions=[0.1, 0.1])
    crosscoder = DedicatedFeatureCrosscoder([6, 9], cfg)
    vector = torch.randn(6)
    found = transfer(crosscoder, vector, num_latents=5)
    controls = random_transfers(crosscoder, vector, found, 20)
    assert len({tuple(control.latents) for control in controls}) == 20
    for control in controls:
        assert not set(control.latents) & set(found.latents)
        assert set(control.latents) <= set(crosscoder.partition.shared)
        assert control.vector.norm().item() == pytest.approx(found.vector.norm().item(), rel=1e-5)
        assert control.cosines == found.cosines
    with pytest.raises(ValueError, match="At least one"):
        random_transfers(crosscoder, vector, found, 0)
    again = random_transfers(crosscoder, vector, found, 20)
    assert [c.latents for c in again] == [c.latents for c in controls]
