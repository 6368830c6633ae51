import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder

from sparsify_crosscoder import Crosscoder, ResidualDedicatedFeatureCrosscoder
from sparsify_crosscoder.config import CrosscoderConfig
from sparsify_crosscoder.registry import architecture_names
from sparsify_crosscoder.store.normalization import estimate_normalization
from tests.support.crosscoders import make, train_a_little


def trained(arch: str) -> Crosscoder:
    crosscoder = make(arch, {})
    train_a_little(crosscoder, "adam", 2)
    widths = crosscoder.d_sources
    crosscoder.set_normalization([torch.randn(d) for d in widths], torch.tensor([0.3, 1.7]))
    x = torch.randn(50, crosscoder.d_in, dtype=torch.float64)
    crosscoder.update_threshold(crosscoder(x).cuts, 0.999)
    crosscoder.sources = [{"name": "a", "hookpoint": "layers.1"}, {"name": "b", "hookpoint": "h.2"}]
    return crosscoder


@pytest.mark.parametrize("arch", architecture_names())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_saving_and_loading_is_bit_exact(arch, dtype, tmp_path):
    crosscoder = trained(arch).to(dtype)
    crosscoder.save_to_disk(tmp_path / "x")
    loaded = Crosscoder.load_from_disk(tmp_path / "x")
    assert type(loaded) is type(crosscoder)
    assert loaded.cfg == crosscoder.cfg
    assert loaded.sources == crosscoder.sources
    assert loaded.dtype == dtype
    before, after = crosscoder.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    x = torch.randn(20, crosscoder.d_in)
    crosscoder.eval()
    assert torch.equal(loaded(x).sae_out, crosscoder(x).sae_out)


def test_the_file_has_sparsifys_names_and_zeros_where_a_dfc_has_no_weights(tmp_path):
    crosscoder = trained("dfc")
    crosscoder.save_to_disk(tmp_path)
    state = load_file(tmp_path / "sae.safetensors")
    assert state["W_dec"].shape == state["encoder.weight"].shape == (40, 12)
    assert {"encoder.bias", "b_dec", "mean", "factors", "threshold"} <= state.keys()
    block = crosscoder.partition.exclusive(0)
    assert not state["W_dec"][: block.stop, 7:].any()
    cfg = json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8"))
    assert cfg["arch"] == "dfc" and cfg["d_sources"] == [7, 5] and cfg["d_in"] == 12
    assert cfg["factors"] == pytest.approx([0.3, 1.7])
    assert len(cfg["thresholds"]) == 3


def test_many_are_loaded_by_their_folders_names(tmp_path):
    for name in ("layers.2+h.1", "layers.10+h.5"):
        trained("dfc").save_to_disk(tmp_path / name)
    assert list(Crosscoder.load_many(str(tmp_path), local=True)) == [
        "layers.2+h.1",
        "layers.10+h.5",
    ]
    only = Crosscoder.load_many(str(tmp_path), local=True, layers=["layers.10+h.5"])
    assert list(only) == ["layers.10+h.5"]
    with pytest.raises(FileNotFoundError, match="No crosscoder"):
        Crosscoder.load_many(str(tmp_path), local=True, pattern="nothing*")


def test_pushing_to_and_pulling_from_a_folder(tmp_path):
    crosscoder = trained("dsf")
    crosscoder.push_to_hub(str(tmp_path), "layers.1+h.2")
    pulled = Crosscoder.load_from_hub(str(tmp_path), "layers.1+h.2")
    assert torch.equal(pulled.W_dec, crosscoder.W_dec)
    with pytest.raises(FileNotFoundError, match=r"layers\.1\+h\.2"):
        Crosscoder.load_from_hub(str(tmp_path))


def alone(crosscoder: Crosscoder, x: torch.Tensor, source: int) -> torch.Tensor:
    """Pre-activations of one model's raw `x` [N, D] where the others are at 0, `[N, M]`.

    Written out from the stored weights, block by block.
    """
    columns = crosscoder.columns[source]
    mean, factor = crosscoder.mean[columns].double(), crosscoder.factors[source].double()
    normalized = (x - mean) * factor
    pre = torch.full((len(x), crosscoder.num_latents), -1.0, dtype=torch.float64)
    for block, weight in zip(crosscoder.partition.blocks, crosscoder.encoder.weights, strict=True):
        if source not in block.sources:
            continue
        widths = [crosscoder.d_sources[s] for s in block.sources]
        mine = weight.split(widths, 1)[block.sources.index(source)].double()
        read = normalized
        if isinstance(crosscoder, ResidualDedicatedFeatureCrosscoder) and len(block.sources) == 1:
            read = normalized @ crosscoder.whitening(source).double()
        if crosscoder.cfg.reduce == "mean":
            mine = mine / len(block.sources)
        bias = crosscoder.encoder.bias[block.start : block.stop].double()
        pre[:, block.start : block.stop] = read @ mine.T + bias
    return pre


def normalised_by(normalization: str, crosscoder: Crosscoder) -> None:
    """Store what a run with this option would."""
    sample = [3 * torch.randn(64, d) + 2 for d in crosscoder.d_sources]
    if normalization != "none":
        centred = normalization == "centred"
        crosscoder.set_normalization(*estimate_normalization(sample, centred=centred))


@pytest.mark.parametrize("normalization", ["centred", "uncentred", "none"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("arch", architecture_names())
def test_an_exported_half_reads_what_the_crosscoder_does_where_the_others_are_0(
    arch, sources, reduce, normalization, tmp_path
):
    crosscoder = make(arch, {"reduce": reduce}, sources)
    train_a_little(crosscoder, "adam", 2)
    normalised_by(normalization, crosscoder)
    for source, width in enumerate(crosscoder.d_sources):
        crosscoder.export_sae(source, tmp_path / f"{source}")
        sae = SparseCoder.load_from_disk(tmp_path / f"{source}")
        assert type(sae) is SparseCoder and sae.d_in == width and sae.dtype == torch.float64
        x = torch.randn(9, width, dtype=torch.float64) * 3 + 1
        pre = (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
        expected = alone(crosscoder, x, source)
        torch.testing.assert_close(pre, expected, rtol=1e-10, atol=1e-10)

        # The crosscoder itself, on raw activations that normalise to 0 in the other models.
        raw = [crosscoder.mean[c].double().expand(9, -1) for c in crosscoder.columns]
        raw[source] = x
        reads = [source in block.sources for block in crosscoder.partition.blocks]
        its_own = torch.cat(
            [
                crosscoder.encode(raw).pre_acts[:, block.start : block.stop] * read
                for block, read in zip(crosscoder.partition.blocks, reads, strict=True)
            ],
            1,
        )
        torch.testing.assert_close(its_own, expected.relu(), rtol=1e-10, atol=1e-10)

        acts, indices = expected.relu().topk(3)
        kept = torch.zeros_like(expected).scatter_(1, indices, acts)
        out = sae.encode(x)
        got = torch.zeros_like(kept).scatter_(1, out.top_indices, out.top_acts)
        torch.testing.assert_close(got, kept, rtol=1e-10, atol=1e-10)
        columns, factor = crosscoder.columns[source], crosscoder.factors[source].double()
        x_hat = (kept @ crosscoder.decoder(source) + crosscoder.b_dec[columns]) / factor
        torch.testing.assert_close(
            sae.decode(out.top_acts, out.top_indices),
            x_hat + crosscoder.mean[columns],
            rtol=1e-10,
            atol=1e-10,
        )


def test_a_checkpoint_without_median_norms_is_read_as_one_that_does_not_know_them(tmp_path):
    crosscoder = trained("dfc")
    crosscoder.median_norms.copy_(torch.tensor([2.0, 3.0]))
    crosscoder.save_to_disk(tmp_path)
    assert Crosscoder.load_from_disk(tmp_path).median_norms.tolist() == [2.0, 3.0]
    state = load_file(tmp_path / "sae.safetensors")
    del state["median_norms"]
    save_file(state, tmp_path / "sae.safetensors")
    assert Crosscoder.load_from_disk(tmp_path).median_norms.tolist() == [0.0, 0.0]


def test_a_truncated_checkpoint_is_named(tmp_path):
    trained("dfc").save_to_disk(tmp_path)
    file = tmp_path / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"sae\.safetensors' is damaged or truncated"):
        Crosscoder.load_from_disk(tmp_path)


def test_weights_where_a_dfc_has_none_are_refused(tmp_path):
    trained("dfc").save_to_disk(tmp_path)
    state = load_file(tmp_path / "sae.safetensors")
    state["W_dec"][0, -1] = 1.0
    save_file(state, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="weights to other sources"):
        Crosscoder.load_from_disk(tmp_path)


def test_a_plain_sae_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cfg\.json"):
        Crosscoder.load_from_disk(tmp_path)
    make("dfc", {}).export_sae(0, tmp_path)
    with pytest.raises(ValueError, match="not a crosscoder's"):
        Crosscoder.load_from_disk(tmp_path)
    (tmp_path / "cfg.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        Crosscoder.load_from_disk(tmp_path)


PLACE = "layers.1+h.2"


def of_size(num_latents: int, folder: Path) -> Path:
    """A crosscoder read at layers.1 and h.2, written into a folder."""
    sources = [{"name": "m", "hookpoint": place, "width": 4} for place in PLACE.split("+")]
    Crosscoder(
        [4, 4], CrosscoderConfig(num_latents=num_latents, k=2), sources=sources
    ).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    "inner",
    [
        f"big/{PLACE}",  # a run named run/big
        f"seed1/{PLACE}",
        f"a-backup/run/{PLACE}",
        "a-copy",  # of the crosscoder's own folder
        f"{PLACE}.old",
        f"{PLACE}/seed0-old",
        f"checkpoints/step_000005/{PLACE}",
        f"best/{PLACE}",
        "delphi/latents/model.layers.1",
    ],
)
def test_only_what_training_put_there_is_a_runs_own(inner, tmp_path):
    of_size(16, tmp_path / "run" / PLACE)
    of_size(32, tmp_path / "run" / inner)
    assert list(Crosscoder.load_many(str(tmp_path / "run"), local=True)) == [PLACE]
    assert Crosscoder.load_one(tmp_path / "run").num_latents == 16


def test_an_exported_half_inside_a_run_is_not_its_crosscoder(tmp_path):
    of_size(16, tmp_path / PLACE)
    for inner in ("exported", "exported/layers.1", "layers.1"):
        Crosscoder.load_one(tmp_path).export_sae(0, tmp_path / inner)
    assert Crosscoder.load_one(tmp_path).num_latents == 16


def test_the_crosscoders_of_several_seeds_are_a_runs_own(tmp_path):
    for seed in (0, 1, 10):
        of_size(16 + seed, tmp_path / PLACE / f"seed{seed}")
    of_size(99, tmp_path / "copy" / PLACE / "seed1")
    found = Crosscoder.load_many(str(tmp_path), local=True)
    assert list(found) == [f"{PLACE}/seed{seed}" for seed in (0, 1, 10)]
    assert Crosscoder.load_one(tmp_path, 1).num_latents == 17
    with pytest.raises(ValueError, match="no crosscoder of seed 2"):
        Crosscoder.load_one(tmp_path, 2)


def test_a_damaged_crosscoder_is_not_replaced_by_a_copy_beside_it(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"hookpoints": PLACE.split("+")}), encoding="utf-8"
    )
    of_size(16, tmp_path / "a-copy")
    of_size(16, tmp_path / PLACE)
    (tmp_path / PLACE / "cfg.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cfg\.json' is damaged"):
        Crosscoder.load_one(tmp_path)


def test_a_moved_run_and_the_folder_of_its_crosscoder_are_loaded(tmp_path):
    of_size(16, tmp_path / "runs" / "exp" / PLACE)
    (tmp_path / "runs" / "exp").rename(tmp_path / "renamed")
    assert Crosscoder.load_one(tmp_path / "renamed").num_latents == 16
    assert Crosscoder.load_one(tmp_path / "renamed" / PLACE).num_latents == 16


def test_a_folder_of_runs_is_no_run(tmp_path):
    of_size(16, tmp_path / "exp" / PLACE)
    (tmp_path / "exp" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="It holds runs: exp; name one of them"):
        Crosscoder.load_one(tmp_path)
