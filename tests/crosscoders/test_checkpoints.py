import json

import pytest
import torch
from crosscoders.test_crosscoder import train_a_little
from crosscoders.test_gradients import make
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder

from sparsify_crosscoder import Crosscoder


def trained(arch: str) -> Crosscoder:
    crosscoder = make(arch, {})
    train_a_little(crosscoder, "adam", 2)
    widths = crosscoder.d_sources
    crosscoder.set_normalization([torch.randn(d) for d in widths], torch.tensor([0.3, 1.7]))
    x = torch.randn(50, crosscoder.d_in, dtype=torch.float64)
    crosscoder.update_threshold(crosscoder(x).cuts, 0.999)
    crosscoder.sources = [{"name": "a", "hookpoint": "layers.1"}, {"name": "b", "hookpoint": "h.2"}]
    return crosscoder


@pytest.mark.parametrize("arch", ["crosscoder", "dfc", "dsf", "rdfc"])
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


@pytest.mark.parametrize("arch", ["crosscoder", "dfc", "dsf"])
@pytest.mark.parametrize("source", [0, 1])
def test_an_exported_half_is_a_sae_that_plain_sparsify_loads(arch, source, tmp_path):
    crosscoder = trained(arch)
    crosscoder.export_sae(source, tmp_path)
    sae = SparseCoder.load_from_disk(tmp_path)
    assert type(sae) is SparseCoder and sae.d_in == crosscoder.d_sources[source]
    x = torch.randn(9, sae.d_in, dtype=torch.float64) * 3 + 1

    columns = crosscoder.columns[source]
    factor = crosscoder.factors[source].double()
    normalized = (x - crosscoder.mean[columns]) * factor
    pre = normalized @ crosscoder.encoder_weight(source).T + crosscoder.encoder.bias
    for block in crosscoder.partition.blocks:
        if source not in block.sources:
            pre[:, block.start : block.stop] = 0
    acts, indices = pre.relu().topk(3)
    expected = torch.zeros_like(pre).scatter_(1, indices, acts)
    out = sae.encode(x)
    got = torch.zeros_like(pre).scatter_(1, out.top_indices, out.top_acts)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    x_hat = (expected @ crosscoder.decoder(source) + crosscoder.b_dec[columns]) / factor
    torch.testing.assert_close(
        sae.decode(out.top_acts, out.top_indices),
        x_hat + crosscoder.mean[columns],
        rtol=1e-6,
        atol=1e-6,
    )


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
