"""Crosscoders of dictionary_learning as runs, beside an implementation of the format of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsify_crosscoder import Run, import_config, import_run
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.endings import UsageError
from sparsify_crosscoder.exports.published_crosscoder import read_published
from tests.exports.test_export import CLOSE

WIDTH, LATENTS, SOURCES = 24, 40, 2


class TheirCrossCoder:
    """What dictionary_learning's classes compute of x [N, S, D], written from their description."""

    def __init__(self, state: dict[str, Tensor], config: dict):
        self.state, self.config = state, config

    def _scaled(self, x: Tensor) -> Tensor:
        if "activation_mean" not in self.state:
            return x
        scale = self.state["activation_global_scale"][None, :, None]
        return (x - self.state["activation_mean"]) * scale

    def encode(self, x: Tensor) -> Tensor:
        pre = torch.einsum("nsd,sdm->nm", self._scaled(x), self.state["encoder.weight"])
        acts = (pre + self.state["encoder.bias"]).relu()
        if "threshold" not in self.state:
            return acts
        norms = self.state["decoder.weight"].norm(dim=2).sum(0)
        if self.config.get("code_normalization") == "NONE":
            norms = torch.ones(LATENTS)
        return acts * (acts * norms > self.state["threshold"])

    def decode(self, acts: Tensor) -> Tensor:
        x = torch.einsum("nm,smd->nsd", acts, self.state["decoder.weight"])
        x = x + self.state["decoder.bias"]
        if "activation_mean" not in self.state:
            return x
        scale = self.state["activation_global_scale"][None, :, None]
        return x / (scale + 1e-8) + self.state["activation_mean"]


def theirs(kind: str = "CrossCoder", *, normalized: bool = False, **config) -> TheirCrossCoder:
    state = {
        "encoder.weight": torch.randn(SOURCES, WIDTH, LATENTS) / 5,
        "encoder.bias": torch.randn(LATENTS) / 5,
        "decoder.weight": torch.randn(SOURCES, LATENTS, WIDTH) / 5,
        "decoder.bias": torch.randn(SOURCES, WIDTH),
    }
    if kind == "BatchTopKCrossCoder":
        state |= {"threshold": torch.tensor(1.5), "k": torch.tensor(7, dtype=torch.int)}
    if normalized:
        state["activation_mean"] = torch.randn(SOURCES, WIDTH)
        state["activation_std"] = torch.rand(SOURCES, WIDTH) + 0.5
        state["activation_global_scale"] = torch.tensor([0.7, 1.6])
    sizes = {"activation_dim": WIDTH, "dict_size": LATENTS, "num_layers": SOURCES}
    return TheirCrossCoder(state, {"dict_class": kind, **sizes, **config})


def write(crosscoder: TheirCrossCoder, folder: Path, weights: str = "model.safetensors") -> Path:
    """A folder as the hub has it, or with another name of weights as a trainer leaves it."""
    folder.mkdir()
    config = crosscoder.config
    if weights == "model.safetensors":
        save_file(crosscoder.state, str(folder / weights))
    else:
        torch.save(crosscoder.state, folder / weights)
        config = {"trainer": config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


KINDS = {
    "relu": theirs,
    "relu, normalized": lambda: theirs(normalized=True),
    "threshold": lambda: theirs("BatchTopKCrossCoder", code_normalization="CROSSCODER"),
    "threshold of activations": lambda: theirs("BatchTopKCrossCoder", code_normalization="NONE"),
    "threshold, normalized": lambda: theirs("BatchTopKCrossCoder", normalized=True),
}


@pytest.mark.parametrize("weights", ["model.safetensors", "ae.pt"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_activations_and_reconstruction_are_theirs(kind, weights, tmp_path):
    torch.manual_seed(0)
    their = KINDS[kind]()
    ours = read_published(write(their, tmp_path / "theirs", weights)).crosscoder([])
    x = 2 * torch.randn(500, SOURCES, WIDTH) + 1
    expected = their.encode(x)
    code = ours.encode_sparse(list(x.unbind(1)))
    assert 0 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(code.to_dense(), expected, **CLOSE)
    x_hat = ours.decode_sparse(code).reshape(500, SOURCES, WIDTH)
    torch.testing.assert_close(x_hat, their.decode(expected), **CLOSE)


def test_what_equals_the_threshold_is_not_active(tmp_path):
    their = theirs("BatchTopKCrossCoder", code_normalization="NONE")
    for name in ("encoder.weight", "encoder.bias"):
        their.state[name] = torch.zeros_like(their.state[name])
    their.state["encoder.bias"][:2] = torch.tensor([1.5, 1.5000002])
    ours = read_published(write(their, tmp_path / "theirs")).crosscoder([])
    code = ours.encode_sparse([torch.randn(1, WIDTH)] * SOURCES)
    assert code.indices.tolist() == [1]


def changed(**state) -> TheirCrossCoder:
    their = theirs("BatchTopKCrossCoder")
    for name, tensor in state.items():
        their.state[name.replace("__", ".")] = tensor
    return their


REFUSED = {
    "code_normalization DECOUPLED": lambda: theirs(
        "BatchTopKCrossCoder", code_normalization="DECOUPLED"
    ),
    "code_normalization SAE": lambda: changed(code_normalization_id=torch.tensor(2)),
    "learned no threshold": lambda: changed(threshold=torch.tensor(-1.0)),
    "is a DedicatedFeatureCrossCoder": lambda: theirs("DedicatedFeatureCrossCoder"),
    "encoder.bias [2, 40]": lambda: changed(encoder__bias=torch.zeros(2, LATENTS)),
    "each dimension of the activations by itself": lambda: theirs(
        normalized=True, keep_relative_variance=False
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_represented_is_refused_in_one_line(reason, tmp_path):
    folder = write(REFUSED[reason](), tmp_path / "theirs")
    with pytest.raises(UsageError) as error:
        read_published(folder)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_decoder_in_parts_or_no_weights_are_refused(tmp_path):
    their = theirs()
    their.state["decoder.layers.0.weight"] = their.state.pop("decoder.weight")
    with pytest.raises(UsageError, match=r"has no decoder\.weight"):
        read_published(write(their, tmp_path / "bag"))
    (tmp_path / "bag" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"none of model\.safetensors"):
        read_published(tmp_path / "bag")
    with pytest.raises(UsageError, match=r"no config\.json"):
        read_published(tmp_path)


def arguments(twins: Path, folder: Path, run: Path, dataset: Path | None = None) -> list[str]:
    place = twins.parent
    return [
        *("import", str(folder), str(run)),
        *("--models", str(place / "base"), str(place / "tuned")),
        *("--hookpoints", "layers.1", "layers.1", "--device", "cpu"),
        *("--dataset", str(dataset or place / "texts.txt"), "--ctx_len", "64"),
    ]


def test_an_imported_run_is_read_by_the_commands(twins, tmp_path, capsys):
    their = theirs("BatchTopKCrossCoder")
    folder, run = write(their, tmp_path / "theirs"), tmp_path / "run"
    main([*arguments(twins, folder, run), "--json", str(tmp_path / "imported.json")])
    assert "Imported 40 latents" in capsys.readouterr().out
    opened = Run.open(run)
    summary = opened.summary()
    assert summary.mean_l0 and summary.fve_per_source and summary.whole["k"] == 7
    imported = json.loads((tmp_path / "imported.json").read_text(encoding="utf-8"))
    assert imported["fve_per_source"] == summary.fve_per_source
    assert (opened.crosscoder().median_norms > 0).all()

    main(["top", str(run), "--pairs", "500", "--count", "1", "--device", "cpu"])
    assert "relative decoder norm" in capsys.readouterr().out
    main(["filter", str(run), "--pairs", "500", "--device", "cpu", "--json", str(tmp_path / "f")])
    assert json.loads((tmp_path / "f").read_text(encoding="utf-8"))["rows"] is not None
    main(["steer", str(run), "--latents", "1", "--device", "cpu", "--prompts", "The river"])
    assert opened.ends[1].hookpoint == "layers.1"


def test_its_reconstruction_is_measured_on_the_texts(twins, tmp_path):
    """FVE of the summary equals that of their own implementation on the run's pairs."""
    their = theirs()
    config = import_config(
        model=str(twins.parent / "base"),
        partners=[str(twins.parent / "tuned")],
        dataset=str(twins.parent / "store"),
        held_out_pairs=0,
        outlier_multiple=0.0,
    )
    imported = import_run(write(their, tmp_path / "theirs"), tmp_path / "run", config, "cpu")
    pairs = Run.open(tmp_path / "run").pairs("cpu")
    x = torch.stack([part.float() for part in pairs.sample(pairs.num_pairs)], 1)
    acts = their.encode(x)
    error = (x - their.decode(acts)).pow(2).sum((0, 2))
    expected = 1 - error / (x - x.mean(0)).pow(2).sum((0, 2))
    torch.testing.assert_close(
        torch.tensor(imported.fve_per_source), expected, rtol=1e-4, atol=1e-4
    )
    assert imported.mean_l0 == pytest.approx(float((acts > 0).sum(1).float().mean()), rel=1e-3)


def test_models_of_other_widths_are_refused_and_nothing_is_written(run, twins, tmp_path, capsys):
    folder = write(theirs(), tmp_path / "theirs")
    argv = arguments(twins, folder, tmp_path / "made")
    place = run.parent
    argv[argv.index("--models") + 2] = str(place / "gpt2")
    argv[argv.index("--hookpoints") + 2] = "h.2"
    argv[argv.index("--dataset") + 1] = str(place / "texts.txt")
    argv[argv.index("--models") + 1] = str(place / "llama")
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "widths [24, 24]" in said and "[24, 32]" in said
    assert not (tmp_path / "made").exists()
    with pytest.raises(SystemExit) as stopped:
        main(arguments(twins, folder, run))
    assert stopped.value.code == 2 and "exists already" in capsys.readouterr().err
