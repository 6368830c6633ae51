"""Names and bytes of checkpoints and stores, of values that every machine computes exactly."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import sparsify_crosscoder
from sparsify_crosscoder import ActivationStore, Crosscoder
from tests.golden import internals
from tests.golden.compare import file_names
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer
from tests.support.windows import random_windows

SOURCES = [{"name": "models/a", "hookpoint": "layers.1"}, {"name": "b", "hookpoint": "h.2"}]
ARCHITECTURES = {
    "crosscoder": ("Crosscoder", "CrosscoderConfig", [7, 5]),
    "dfc": ("DedicatedFeatureCrosscoder", "DFCConfig", [7, 5]),
    "dsf": ("DesignatedSharedFeatureCrosscoder", "DSFConfig", [6, 6]),
    "rdfc": ("ResidualDedicatedFeatureCrosscoder", "RDFCConfig", [7, 5]),
}
DTYPES = ("bfloat16", "float16", "float32", "int8")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tensors(file: Path) -> dict[str, str]:
    """The tensors of a file in its order, with their types and shapes."""
    with safe_open(file, framework="pt") as opened:
        found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: f"{one.get_dtype()} {one.get_shape()}" for name, one in found.items()}


def filled(arch: str, dtype: torch.dtype) -> Crosscoder:
    """An untrained crosscoder of fractions of 2 as weights, tied and absent ones as they are."""
    coder, config, widths = ARCHITECTURES[arch]
    cfg = getattr(sparsify_crosscoder, config)(num_latents=40, k=3)
    made = getattr(sparsify_crosscoder, coder)(widths, cfg, dtype=dtype, sources=SOURCES)
    state = made.state_dict()
    places = torch.cat([torch.arange(width) for width in widths])
    for number, (name, old) in enumerate(sorted(state.items())):
        values = 7 * torch.arange(old.shape[0]) + number
        if old.ndim == 2:
            columns = places if old.shape[1] == len(places) else torch.arange(old.shape[1])
            values = values[:, None] + 3 * columns
        values = (values % 13 - 6) / 8
        # Weights that an architecture does not have stay 0.
        there = old != 0 if name in ("encoder.weight", "W_dec") else torch.ones_like(old).bool()
        state[name] = torch.where(there, values.to(old.dtype), 0)
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_checkpoint(arch, golden, tmp_path):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        crosscoder = filled(arch, dtype)
        folder = tmp_path / str(dtype)
        crosscoder.save_to_disk(folder)
        weights = folder / "sae.safetensors"
        found[str(dtype)] = {
            "files": file_names(folder),
            "tensors": tensors(weights),
            "state_dict": sorted(crosscoder.state_dict()),
            # An optimizer's state knows them by their order.
            "parameters": [str(list(one.shape)) for one in crosscoder.parameters()],
            "sha256": sha256(weights),
        }
        loaded, state = Crosscoder.load_from_disk(folder).state_dict(), crosscoder.state_dict()
        assert all(torch.equal(loaded[name], one) for name, one in state.items())
    golden.json(f"checkpoints/{arch}", found)
    golden.text(f"checkpoints/{arch}_cfg", (folder / "cfg.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_exported_half(arch, golden, tmp_path):
    filled(arch, torch.float32).export_sae(1, tmp_path)
    found = {"files": file_names(tmp_path), "tensors": tensors(tmp_path / "sae.safetensors")}
    cfg = json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8"))
    golden.json(f"checkpoints/{arch}_half", {**found, "cfg": cfg})


@pytest.mark.parametrize("dtype", DTYPES)
def test_shard(dtype, golden, tmp_path):
    rows = torch.arange(150)[:, None]
    # Of mean 0 and standard deviation 1 in every dimension, for int8.
    signs = [1 - 2 * ((rows // (1 + torch.arange(width) % 2 * 4)) % 2) for width in (4, 6)]
    written = internals.write_shard(
        tmp_path / "shard_000000.safetensors", [one.bfloat16() for one in signs], dtype
    )
    assert written["sha256"] == sha256(tmp_path / "shard_000000.safetensors")
    found = {"note": written, "tensors": tensors(tmp_path / "shard_000000.safetensors")}
    golden.json(f"stores/shard_{dtype}", found)


def exact_model(kind: str, width: int):
    """A model whose layers add nothing, so that activations are its embeddings, bit for bit."""
    model = tiny_model(kind, width=width)
    for number, weight in enumerate(model.parameters()):
        weight.zero_()
        if weight.ndim == 2 and not number:
            places = torch.arange(weight.numel()).view(weight.shape)
            weight.copy_((places * 37 % 64 - 32) / 16)
    return model.bfloat16()


def test_store(golden, tmp_path):
    """Two harvests into one store: every name, and the bytes of what holds activations."""
    tokenizer = byte_level_tokenizer()
    sources = [
        internals.Source("models/a", "layers.2", exact_model("llama", 16), tokenizer, 16),
        internals.Source("b", "h.1", exact_model("gpt2", 12), tokenizer, 12),
    ]
    options = {"batch_size": 3, "shard_pairs": 30}
    ActivationStore.create(
        tmp_path, sources, random_windows(12), **options, origin={"dataset": "texts.txt"}
    )
    store = ActivationStore.create(
        tmp_path, sources, random_windows(6, seed=1), **options, append=True
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    golden.json("stores/manifest", manifest)
    golden.json("stores/files", file_names(tmp_path, ".lock"))
    shards = sorted(tmp_path.glob("shard_*"))
    assert [sha256(one) for one in shards] == [
        shard["sha256"] for part in manifest["parts"] for shard in part["shards"]
    ]
    golden.json("stores/windows", {name: str(f) for name, f in store.windows.features.items()})


def test_merged_stores(golden, tmp_path):
    sources = [
        internals.Source("a", "layers.0", exact_model("llama", 8), byte_level_tokenizer(), 8)
    ]
    sources.append(sources[0])
    for seed in range(2):
        windows = random_windows(4, seed=seed)
        ActivationStore.create(tmp_path / str(seed), sources, windows, batch_size=2)
    ActivationStore.merge(tmp_path / "merged", [tmp_path / "0", tmp_path / "1"])
    manifest = json.loads((tmp_path / "merged/manifest.json").read_text(encoding="utf-8"))
    found = {"files": file_names(tmp_path / "merged", ".lock"), "parts": manifest["parts"]}
    golden.json("stores/merged", found)


def test_public_names(golden):
    golden.json("public_names", sorted(sparsify_crosscoder.__all__))
    assert all(
        getattr(sparsify_crosscoder, name) is not None for name in sparsify_crosscoder.__all__
    )


def test_columns_of_the_table_of_latents(golden):
    found = {field.name: [str(field.type), field.nullable] for field in internals.schema()}
    golden.json("features", found)
