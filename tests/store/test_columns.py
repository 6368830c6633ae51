"""Columns of a store: what is kept of every pair beside its activations."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsify_crosscoder.harvest.harvest import run_harvest
from sparsify_crosscoder.harvest.heads import Head
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer
from tests.support.windows import random_windows

NAMES = ("kl_1_0", "kl_0_1", "loglik_0", "loglik_1")
TOKENIZER = byte_level_tokenizer()
WINDOWS = random_windows(20)
SETTINGS = {"batch_size": 3, "shard_pairs": 30}


def sources(heads=True):
    found = []
    for name, hookpoint, width, seed in (("a", "layers.2", 32, 0), ("b", "layers.1", 24, 1)):
        model = tiny_model("llama", seed=seed, width=width, causal_lm=True)
        head = Head(model, name) if heads else None
        found.append(Source(name, hookpoint, model.base_model, TOKENIZER, width, head=head))
    return found


def contents(path):
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


@pytest.fixture(scope="module", params=["float32", "int8"])
def whole(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("columns") / "whole"
    ActivationStore.create(path, sources(), WINDOWS, dtype=request.param, **SETTINGS)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def harvested(windows=WINDOWS):
    """The columns and activations of all pairs in the order of the windows, shard by shard."""
    return run_harvest(sources(), windows, range(len(windows)), batch_size=3)


def test_columns_belong_to_the_pairs_that_have_their_numbers(whole):
    store = ActivationStore.open(whole)
    assert store.column_names == NAMES
    wanted = harvested().columns
    index = torch.from_numpy(np.random.default_rng(0).permutation(len(store))[:50])
    for name, values in store.columns(index).items():
        assert values.dtype == torch.float32 and values.shape == (50,)
        assert torch.allclose(values, wanted[name][index], rtol=1e-4, atol=1e-5)
    assert set(store.columns(index, ["kl_1_0"])) == {"kl_1_0"}
    assert store.columns(index[:0])["kl_1_0"].shape == (0,)


def test_a_stream_says_which_pairs_it_gives(whole):
    store = ActivationStore.open(whole)
    for settings in ({}, {"whole_pairs": 1, "stretch_pairs": 40}):
        for rank in (0, 1):
            stream = StoreStream(store, seed=3, rank=rank, world_size=2, **settings)
            for step, batch in enumerate(stream.batches(0, 12, 32)):
                numbers = stream.numbers(32 * step, 32 * (step + 1))
                assert all(map(torch.equal, batch, store.rows(numbers)))


def test_a_damaged_column_is_found(copy):
    file = copy / "shard_000001.safetensors"
    tensors = load_file(file)
    tensors["column_kl_1_0"][3] += 1
    save_file(tensors, file)
    store = ActivationStore.open(copy)
    with pytest.raises(ValueError, match=r"shard_000001.*do not match their checksum"):
        store.columns(torch.arange(len(store)))
    with pytest.raises(ValueError, match=r"shard_000001.*do not match their checksum"):
        store.rows(torch.arange(len(store)))


def test_a_harvest_with_columns_goes_on_to_the_same_bytes(whole, copy):
    before, dtype = contents(copy), ActivationStore.open(whole).dtype
    (copy / "shard_000002.safetensors").unlink()
    ActivationStore.create(copy, sources(), WINDOWS, dtype=dtype, **SETTINGS)
    assert contents(copy) == before


def test_stores_with_columns_are_joined(whole, tmp_path):
    dtype, other = ActivationStore.open(whole).dtype, random_windows(7, seed=5)
    ActivationStore.create(tmp_path / "other", sources(), other, dtype=dtype, **SETTINGS)
    ActivationStore.create(tmp_path / "plain", sources(False), other, dtype=dtype, **SETTINGS)
    both = ActivationStore.merge(tmp_path / "both", [whole, tmp_path / "other"])
    wanted = [ActivationStore.open(p) for p in (whole, tmp_path / "other")]
    found = both.columns(torch.arange(len(both)))
    for name in NAMES:
        parts = [store.columns(torch.arange(len(store)))[name] for store in wanted]
        assert torch.equal(found[name], torch.cat(parts))
    with pytest.raises(ValueError, match="holds other activations"):
        ActivationStore.merge(tmp_path / "mixed", [whole, tmp_path / "plain"])


def test_a_store_without_columns_stays_as_it_was(tmp_path):
    store = ActivationStore.create(tmp_path / "plain", sources(False), WINDOWS, **SETTINGS)
    assert store.column_names == () and store.columns(torch.arange(3)) == {}
    with pytest.raises(ValueError, match=r"no column 'kl_1_0' .it has none.: harvest it with --kl"):
        store.columns(torch.arange(3), ["kl_1_0"])
    assert "columns" not in store.manifest["parts"][0]["settings"]
    with pytest.raises(ValueError, match="holds other activations than those asked for"):
        ActivationStore.create(tmp_path / "plain", sources(), WINDOWS, **SETTINGS)
    longer = random_windows(30)
    with pytest.raises(ValueError, match="holds other activations than those asked for"):
        ActivationStore.create(tmp_path / "plain", sources(), longer, append=True, **SETTINGS)
