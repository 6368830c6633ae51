"""Steering vectors on disk."""

import pytest
import torch
from safetensors.torch import save_file

from sparsify_crosscoder.interventions.vectors import SteeringVector, cosine


@pytest.fixture
def vector():
    return SteeringVector(torch.randn(7), "org/model", "layers.3", 2.5, {"kind": "persona"})


def test_a_vector_comes_back_to_the_bit(vector, tmp_path):
    vector.save(tmp_path / "v.safetensors")
    back = SteeringVector.load(tmp_path / "v.safetensors")
    assert back.vector.equal(vector.vector)
    assert (back.model, back.hookpoint, back.scale) == ("org/model", "layers.3", 2.5)
    assert back.provenance == {"kind": "persona"}
    steering = back.steering(tokens="generated")
    assert (steering.hookpoint, steering.scale, steering.tokens) == ("layers.3", 2.5, "generated")


def test_a_vector_replaces_a_vector_but_nothing_else(vector, tmp_path):
    path = tmp_path / "v.safetensors"
    vector.save(path)
    SteeringVector(torch.ones(3), "m", "layers.0").save(path)
    assert SteeringVector.load(path).model == "m"
    other = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    before = other.read_bytes()
    with pytest.raises(ValueError, match="not a steering vector"):
        vector.save(other)
    assert other.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 40])
def test_damaged_files_are_named(content, tmp_path):
    path = tmp_path / "v.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.safetensors"):
        SteeringVector.load(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no steering vector"):
        SteeringVector.load(tmp_path / "nothing")


def test_cosine():
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx(24 / 25)
