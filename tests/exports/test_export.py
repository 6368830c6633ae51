"""Halves in the formats of other libraries, read by loaders that state the formats."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from sparsify import SparseCoder
from torch import Tensor

from sparsify_crosscoder import Crosscoder, CrosscoderConfig, Run, export
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.endings import UsageError
from sparsify_crosscoder.exports.export import FORMATS
from sparsify_crosscoder.exports.origin import Origin
from sparsify_crosscoder.registry import architecture_names
from sparsify_crosscoder.store.normalization import estimate_normalization
from tests.support.crosscoders import make, train_a_little

ORIGIN = Origin("some/model", "abc", "layers.7", 128)
WEIGHTS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
CLOSE = {"rtol": 0, "atol": 1e-5}


class Autoencoder(NamedTuple):
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def jumprelu(weights: dict[str, Tensor], centre: Tensor | float) -> Autoencoder:
    """`relu(pre)` where `pre` exceeds the latent's threshold, of x without `centre`."""
    assert weights.keys() == WEIGHTS
    assert all(weight.dtype == torch.float32 for weight in weights.values())

    def encode(x: Tensor) -> Tensor:
        pre = (x - centre) @ weights["W_enc"] + weights["b_enc"]
        return pre.relu() * (pre > weights["threshold"])

    return Autoencoder(encode, lambda acts: acts @ weights["W_dec"] + weights["b_dec"])


def of_saelens(folder: Path) -> Autoencoder:
    """SAELens 6's format, written out."""
    assert {file.name for file in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    cfg = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "sae_weights.safetensors")
    assert cfg["architecture"] == "jumprelu" and cfg["normalize_activations"] == "none"
    assert (cfg["d_in"], cfg["d_sae"]) == weights["W_enc"].shape
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")
    return jumprelu(weights, weights["b_dec"] if cfg["apply_b_dec_to_input"] else 0.0)


def of_dictionary_learning(folder: Path) -> Autoencoder:
    """The format of dictionary_learning's JumpReluAutoEncoder, written out."""
    assert {file.name for file in folder.iterdir()} == {"config.json", "ae.pt"}
    trainer = json.loads((folder / "config.json").read_text(encoding="utf-8"))["trainer"]
    weights = torch.load(folder / "ae.pt", weights_only=True)
    assert trainer["dict_class"] == "JumpReluAutoEncoder"
    assert (trainer["activation_dim"], trainer["dict_size"]) == weights["W_enc"].shape
    return jumprelu(weights, 0.0)


def of_the_real_saelens(folder: Path) -> Autoencoder:
    sae_lens = pytest.importorskip("sae_lens", reason="pip install sae-lens", exc_type=ImportError)
    sae = sae_lens.SAE.load_from_disk(str(folder))
    assert type(sae).__name__ == "JumpReLUSAE"
    assert sae.cfg.metadata.hook_name == "blocks.7.hook_resid_post"
    assert sae.cfg.metadata.model_name == "some/model"
    return Autoencoder(sae.encode, sae.decode)


LOADERS = {
    "saelens": of_saelens,
    "saelens itself": of_the_real_saelens,
    "dictionary_learning": of_dictionary_learning,
}


@torch.enable_grad()
def trained(arch: str, sources: int, centred: bool, **options) -> Crosscoder:
    """A float32 crosscoder with thresholds, of raw activations with a mean of 2."""
    crosscoder = make(arch, options, sources)
    train_a_little(crosscoder, "adam", 2)
    sample = [3 * torch.randn(64, d) + 2 for d in crosscoder.d_sources]
    crosscoder.set_normalization(*estimate_normalization(sample, centred=centred))
    raw = torch.cat([3 * torch.randn(200, d) + 2 for d in crosscoder.d_sources], 1)
    crosscoder.update_threshold(crosscoder(raw.double()).cuts, 0.999)
    return crosscoder.float().eval()


def alone(crosscoder: Crosscoder, x: Tensor, source: int) -> tuple[Tensor, Tensor]:
    """What the crosscoder itself makes of raw `x` [N, D] of one source, the others at 0.

    Activations `[N, M]` of the latents that may read the source, and its reconstruction.
    """
    raw = [crosscoder.mean[columns].expand(len(x), -1) for columns in crosscoder.columns]
    raw[source] = x
    acts = crosscoder.encode_sparse(raw).to_dense()
    for block in crosscoder.partition.blocks:
        if source not in block.sources:
            acts[:, block.start : block.stop] = 0
    latents = torch.arange(crosscoder.num_latents).expand(len(x), -1)
    return acts, crosscoder.decode(acts, latents)[:, crosscoder.columns[source]]


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "uncentred"])
@pytest.mark.parametrize("rank_by", ["score", "mean", "activation"])
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("arch", architecture_names())
@pytest.mark.parametrize("loader", LOADERS)
@torch.no_grad()
def test_a_half_has_the_crosscoders_activations_and_reconstruction(
    loader, arch, sources, rank_by, centred, tmp_path
):
    crosscoder = trained(arch, sources, centred, rank_by=rank_by)
    for source, width in enumerate(crosscoder.d_sources):
        folder = tmp_path / str(source)
        folder.mkdir()
        FORMATS[loader.split()[0]](crosscoder, source, ORIGIN, folder)
        half = LOADERS[loader](folder)
        x = 3 * torch.randn(1000, width) + 2
        acts, x_hat = alone(crosscoder, x, source)
        assert 50 < (acts > 0).sum() < acts.numel() / 2
        torch.testing.assert_close(half.encode(x), acts, **CLOSE)
        torch.testing.assert_close(half.decode(half.encode(x)), x_hat, **CLOSE)


@pytest.mark.parametrize("loader", ["saelens", "dictionary_learning"])
@torch.no_grad()
def test_what_a_half_is_by_hand(loader, tmp_path):
    crosscoder = Crosscoder([1, 1], CrosscoderConfig(num_latents=2, k=1, rank_by="score"))
    crosscoder.encoder.weights[0].copy_(torch.tensor([[1.0, 0.5], [1.0, 0.0]]))
    crosscoder.encoder.bias.copy_(torch.tensor([-1.0, 0.0]))
    # Scores are 3 + 1 and 0 times the activation.
    crosscoder.decoders[0].copy_(torch.tensor([[3.0, -1.0], [0.0, 0.0]]))
    crosscoder.b_dec.copy_(torch.tensor([5.0, 0.0]))
    crosscoder.set_normalization([torch.tensor([10.0]), torch.tensor([0.0])], torch.tensor([2, 1]))
    crosscoder.update_threshold(torch.tensor([8.0]), 0.5)
    FORMATS[loader](crosscoder, 0, ORIGIN, tmp_path)
    half = LOADERS[loader](tmp_path)
    # Pre-activations are 2 (x - 10) - 1: active from 8 / 4 = 2 on, which is included.
    acts = half.encode(torch.tensor([[11.5], [11.25], [13.0], [0.0]]))
    assert acts.tolist() == [[2, 0], [0, 0], [5, 0], [0, 0]]
    # 10 + (3 acts + 5) / 2.
    assert half.decode(acts).tolist() == [[15.5], [12.5], [20], [12.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_halves_are_float32_whatever_the_crosscoder_is(dtype, tmp_path):
    wide = trained("dfc", 2, True).to(dtype)
    FORMATS["saelens"](wide, 0, ORIGIN, tmp_path)
    x = 3 * torch.randn(100, 7) + 2
    acts, _ = alone(wide.float(), x, 0)
    torch.testing.assert_close(of_saelens(tmp_path).encode(x), acts, **CLOSE)


@pytest.mark.parametrize(
    ("hookpoint", "layer"),
    [
        ("layers.16", 16),
        ("h.3", 3),
        ("language_model.layers.0", 0),
        ("layers.16.mlp", None),
        ("norm", None),
        (None, None),
    ],
)
def test_only_a_layers_output_is_a_residual_stream(hookpoint, layer, tmp_path):
    origin = ORIGIN._replace(hookpoint=hookpoint)
    assert origin.layer == layer
    FORMATS["saelens"](trained("crosscoder", 2, True), 1, origin, tmp_path)
    metadata = json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8"))["metadata"]
    hook = None if layer is None else f"blocks.{layer}.hook_resid_post"
    assert metadata.get("hook_name") == hook and metadata.get("hf_hook_name") == hookpoint


def command(*argv: object) -> None:
    main(["export", *map(str, argv)])


def refused(capsys, *argv: object) -> str:
    """The one line with which wrong use ends."""
    with pytest.raises(SystemExit) as stop:
        command(*argv)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1, said
    return said.err


@torch.no_grad()
def test_the_command_writes_every_format_of_both_models(run, tmp_path, capsys):
    crosscoder = Crosscoder.load_one(run)
    for source, (width, kind, place) in enumerate([(24, "llama", "layers.1"), (32, "gpt2", "h.2")]):
        x = torch.randn(20, width)
        acts, _ = alone(crosscoder, x, source)
        for name in FORMATS:
            out, note = tmp_path / name / str(source), tmp_path / "note.json"
            command(run, "--source", source, "--format", name, "--out", out, "--json", note)
            said = json.loads(note.read_text(encoding="utf-8"))
            assert said["out"] == str(out) and said["hookpoint"] == place
            assert said["model"].endswith(kind) and said["width"] == width
            assert said["never_fire"] == len(crosscoder.partition.exclusive(1 - source)) > 0
            assert f"Wrote source {source} (" in capsys.readouterr().out
        for name in ("saelens", "dictionary_learning"):
            half = LOADERS[name](tmp_path / name / str(source))
            torch.testing.assert_close(half.encode(x), acts, **CLOSE)
        sae = SparseCoder.load_from_disk(tmp_path / "sparsify" / str(source))
        assert sae.d_in == width and sae.num_latents == crosscoder.num_latents
        written = (tmp_path / "saelens" / str(source) / "cfg.json").read_text(encoding="utf-8")
        metadata = json.loads(written)["metadata"]
        assert metadata["hook_name"] == f"blocks.{source + 1}.hook_resid_post"
        assert metadata["context_size"] == 64 and metadata["model_name"].endswith(kind)


def test_wrong_use_is_named_and_nothing_is_written(run, tmp_path, capsys):
    out = tmp_path / "out"
    usual = [run, "--out", out, "--format", "saelens", "--source"]
    assert "invalid choice: 'gguf'" in refused(capsys, *usual, 0, "--format", "gguf")
    assert "There is no source 2: the run's models are 0 to 1." in refused(capsys, *usual, 2)
    assert "There is no source -1" in refused(capsys, *usual, -1)
    with pytest.raises(UsageError, match="no format 'gguf': take one of sparsify, saelens"):
        export(Run.open(run), 0, "gguf", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("mine", encoding="utf-8")
    assert "exists already; name a new folder with --out" in refused(capsys, *usual, 0)
    assert [file.name for file in out.iterdir()] == ["mine"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["saelens", "dictionary_learning"])
def test_without_thresholds_there_is_only_sparsifys_format(name, run, tmp_path, capsys):
    copytree(run, tmp_path / "run")
    crosscoder = Crosscoder.load_one(tmp_path / "run")
    crosscoder.threshold[1] = torch.nan
    crosscoder.save_to_disk(tmp_path / "run" / "layers.1+h.2")
    usual = [tmp_path / "run", "--source", 0, "--out", tmp_path / "out", "--format"]
    assert "has learned no inference threshold" in refused(capsys, *usual, name)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    command(*usual, "sparsify")
    assert SparseCoder.load_from_disk(tmp_path / "out").d_in == 24
