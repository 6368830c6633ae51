"""When a direction of one model serves in the other as it is, and what the commands say of it."""

import json

import pytest
import torch

from sparsify_crosscoder import Crosscoder, fit_stitching
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.crosscoders.shared_basis import LEAST_R2
from sparsify_crosscoder.interventions.basis import IdentityFit, identity_stitching
from sparsify_crosscoder.interventions.stitching import StitchingConfig
from sparsify_crosscoder.interventions.vectors import SteeringVector
from sparsify_crosscoder.store.tensor_stream import TensorStream

SHORT = ["--prompts", "In", "--max_new_tokens", "2", "--strengths", "0", "1", "--s_max", "2"]
SHORT += ["--device", "cpu", "--model_dtype", "float32"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def r2(a: torch.Tensor, b: torch.Tensor) -> float:
    fit = IdentityFit(0, 1)
    for part in (slice(0, 300), slice(300, None)):
        fit.add([a[part], b[part]])
    return fit.r2()


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1000, 16, generator=generator) for _ in range(2))
    return x, y


def test_a_fine_tune_shares_the_basis_and_a_constant_shift_does_not_matter():
    x, y = pairs()
    assert r2(x, x) == 1
    assert r2(x, x + 0.1 * y) == pytest.approx(0.99, abs=0.01)
    assert r2(x, x + 0.5 * y) > LEAST_R2
    # The shift is within the norms that outliers are told by.
    assert r2(x, x + torch.full((16,), 2.0)) == pytest.approx(1)


def test_other_models_share_none_even_if_their_largest_dimensions_do():
    x, y = pairs()
    assert r2(x, y) == pytest.approx(-1, abs=0.1)
    assert r2(x, x.flip(1)) < 0 and r2(x, -x) < 0
    wide = torch.ones(16)
    wide[:5] = 30
    assert r2(x * wide, torch.cat([x[:, :5], y[:, 5:]], 1) * wide) < 0


def test_a_silent_model_is_like_nothing_and_no_pairs_are_an_error():
    x, _ = pairs()
    assert r2(x, torch.zeros_like(x)) == -float("inf")
    with pytest.raises(ValueError, match="no pairs"):
        IdentityFit(0, 1).r2()


def test_the_identity_carries_points_and_directions_to_the_bit():
    x, _ = pairs()
    identity = identity_stitching(16, (1, 0), 0.9)
    assert torch.equal(identity.direction(x, 0), x) and torch.equal(identity.point(x, 1), x)
    assert identity.other(0) == 1 and identity.other(1) == 0


def steer(capsys, tmp_path, *argv: object) -> tuple[str, dict]:
    capsys.readouterr()
    out = tmp_path / "steer.json"
    main([str(a) for a in ["steer", *argv, *SHORT, "--json", out]])
    return capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))


def failure(capsys, *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in ["steer", *argv, *SHORT]])
    assert stop.value.code == 1
    return capsys.readouterr().err


def exclusive(run, source: int) -> int:
    return Crosscoder.load_one(run).partition.exclusive(source)[0]


@pytest.mark.parametrize("source", [0, 1])
def test_a_latent_of_the_fine_tune_steers_its_base_and_the_reverse(twins, source, tmp_path, capsys):
    latent = exclusive(twins, source)
    said, result = steer(capsys, tmp_path, twins, "--latents", latent, "--source", 1 - source)
    assert said.count("share a basis (R2 of the identity 0.9") == 1
    (model,) = result["models"]
    assert model["model"].endswith(("tuned", "base")[source])
    (steering,) = model["steering"]
    assert steering["label"] == f"latent {latent}, by the identity"
    crosscoder = Crosscoder.load_one(twins)
    own = crosscoder.decoder(source)[latent].detach() / crosscoder.factors[source]
    assert steering["norm"] == pytest.approx(float(own.norm()), rel=1e-5)


def test_both_models_are_steered_by_the_identity_where_that_is_asked_for(twins, tmp_path, capsys):
    latent = exclusive(twins, 1)
    said, result = steer(capsys, tmp_path, twins, "--latents", latent, "--map", "identity")
    assert "by --map identity" in said
    assert [row["model"].rpartition("/")[2] for row in result["models"]] == ["tuned", "base"]
    assert len({row["steering"][0]["norm"] for row in result["models"]}) == 1
    assert "likeness" in result


def test_shared_latents_need_no_map(twins, tmp_path, capsys):
    latent = Crosscoder.load_one(twins).partition.shared[0]
    said, result = steer(capsys, tmp_path, twins, "--latents", latent, "--source", 1)
    assert "basis" not in said
    assert result["models"][0]["steering"][0]["label"] == f"latent {latent}"


def test_another_basis_needs_a_stitching(run, tmp_path, capsys):
    latent = exclusive(run, 0)
    error = failure(capsys, run, "--latents", latent, "--source", 1)
    assert "does not share the basis" in error and "--stitching FOLDER" in error
    assert "wide" in failure(capsys, run, "--latents", latent, "--map", "identity")
    asked = failure(capsys, run, "--latents", latent, "--map", "stitching")
    assert "--map stitching needs --stitching" in asked

    x = torch.randn(500, 24)
    stream = TensorStream([x, x @ torch.randn(24, 32)], seed=0)
    fit_stitching(stream, stream, StitchingConfig(steps=0)).save(tmp_path / "maps")
    maps = ["--stitching", tmp_path / "maps"]
    _, result = steer(capsys, tmp_path, run, "--latents", latent, "--source", 1, *maps)
    (model,) = result["models"]
    assert model["model"].endswith("gpt2")
    assert model["steering"][0]["label"] == f"latent {latent}, stitched"
    both = failure(capsys, run, "--latents", latent, *maps, "--map", "identity")
    assert "not both" in both


def test_the_same_config_is_not_the_same_basis(twins, tmp_path, capsys):
    folder, vector = twins.parent, tmp_path / "v.safetensors"
    SteeringVector(torch.ones(24), str(folder / "base"), "layers.1").save(vector)
    said, _ = steer(capsys, tmp_path, "--vector", vector, "--model", folder / "tuned")
    assert said.count("share a basis (R2 of the identity 0.9") == 1
    error = failure(capsys, "--vector", vector, "--model", folder / "other")
    assert "does not share its basis" in error and "transfer" in error
    forced = ["--vector", vector, "--model", folder / "other", "--map", "identity"]
    assert "by --map identity" in steer(capsys, tmp_path, *forced)[0]
    same = ["--vector", vector, "--model", f"{folder}/./base"]
    assert "basis" not in steer(capsys, tmp_path, *same)[0]


def test_a_vector_whose_model_has_moved_is_used_and_that_is_said(twins, tmp_path, capsys):
    vector = tmp_path / "v.safetensors"
    SteeringVector(torch.ones(24), str(tmp_path / "gone"), "layers.1").save(vector)
    said, _ = steer(capsys, tmp_path, "--vector", vector, "--model", twins.parent / "base")
    assert f"{tmp_path / 'gone'} is not there any more" in said
