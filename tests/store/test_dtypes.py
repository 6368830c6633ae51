import sys

import pytest
import torch

from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.store.dtypes import StoreDtype, dtype_names, get_dtype, register_dtype
from sparsify_crosscoder.store.dtypes.int8 import INT8
from sparsify_crosscoder.store.order import WHOLE_PAIRS
from sparsify_crosscoder.store.shards import bytes_per_pair
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream
from tests.support.models import tiny_model
from tests.support.plugins import write_plugin
from tests.support.tokenizers import byte_level_tokenizer
from tests.support.windows import random_windows

SIGNS = """
import torch
from sparsify_crosscoder.store.dtypes import Encoded, StoreDtype


def encode(x):
    largest = x.float().abs().amax(0)
    return Encoded({"signs": (x > 0).to(torch.uint8).cpu()}, {"largest": largest.cpu()})


def decode(rows, tables, table):
    return (2 * rows["signs"].float() - 1) * tables["largest"][table] / 2


SIGNS = StoreDtype("signs", encode, decode, lambda width: width, ("signs",), ("largest",))
"""
SETTINGS = {"batch_size": 3, "shard_pairs": 30}


@pytest.fixture(scope="module")
def sources():
    models = [tiny_model("llama"), tiny_model("gpt2", width=24)]
    hookpoints, widths = ("layers.2", "h.1"), (32, 24)
    return [
        Source(f"model {s}", hookpoints[s], models[s], byte_level_tokenizer(), widths[s])
        for s in range(2)
    ]


@pytest.fixture
def signs(tmp_path, monkeypatch):
    """A package of others that offers a dtype: one file and an entry point."""
    offered = {"sparsify_crosscoder.store_dtypes": {"signs": "signs_dtype:SIGNS"}}
    site = write_plugin(tmp_path / "site", "signs-dtype", {"signs_dtype.py": SIGNS}, offered)
    monkeypatch.syspath_prepend(str(site))
    yield "signs"
    sys.modules.pop("signs_dtype", None)


def expected(raw, rows_of_shards):
    """What each shard's signs stand for, worked out from the exact activations."""
    parts = [
        torch.where(part > 0, 1.0, -1.0) * part.abs().amax(0) / 2
        for part in raw.split(rows_of_shards)
    ]
    return torch.cat(parts)


def shard_rows(store):
    return [shard["rows"] for part in store.manifest["parts"] for shard in part["shards"]]


def test_a_dtype_of_another_package_is_written_and_read(signs, sources, tmp_path):
    windows = random_windows(20)
    exact = ActivationStore.create(tmp_path / "e", sources, windows, **SETTINGS, dtype="float32")
    store = ActivationStore.create(tmp_path / "s", sources, windows, **SETTINGS, dtype=signs)
    every = torch.arange(len(store))
    assert store.dtype == "signs" and store.num_shards > 1
    for raw, rows in zip(exact.rows(every), store.rows(every), strict=True):
        assert torch.equal(rows, expected(raw, shard_rows(store)))
    mixed = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    for rows, some in zip(store.rows(every), store.rows(mixed), strict=True):
        assert torch.equal(rows[mixed], some)
    assert bytes_per_pair(store.d_sources, signs) == 32 + 24 + 1 / 8


def test_a_dtype_of_another_package_resumes_merges_and_streams(signs, sources, tmp_path):
    windows = random_windows(20)
    whole = ActivationStore.create(tmp_path / "w", sources, windows, **SETTINGS, dtype=signs)
    lost = tmp_path / "w" / "shard_000001.safetensors"
    before = lost.read_bytes()
    lost.unlink()
    again = ActivationStore.create(tmp_path / "w", sources, windows, **SETTINGS, dtype=signs)
    assert lost.read_bytes() == before
    assert again.report.pairs == shard_rows(whole)[1]

    others = random_windows(20, seed=1)
    other = ActivationStore.create(tmp_path / "o", sources, others, **SETTINGS, dtype=signs)
    merged = ActivationStore.merge(tmp_path / "m", [tmp_path / "w", tmp_path / "o"])
    every = [store.rows(torch.arange(len(store))) for store in (whole, other, merged)]
    for one, two, both in zip(*every, strict=True):
        assert torch.equal(torch.cat([one, two]), both)

    for whole_pairs in (WHOLE_PAIRS, 0):
        stream = StoreStream(merged, seed=3, stretch_pairs=64, whole_pairs=whole_pairs)
        streamed = stream.sample(len(merged))
        for rows, kept in zip(streamed, every[2], strict=True):
            assert sorted(rows.tolist()) == sorted(kept.tolist())


def test_damage_to_a_dtype_of_another_package_is_found(signs, sources, tmp_path):
    store = ActivationStore.create(
        tmp_path / "s", sources, random_windows(20), **SETTINGS, dtype=signs
    )
    file = tmp_path / "s" / "shard_000000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard_000000.safetensors' is damaged"):
        store.rows(torch.arange(len(store)))


def test_a_dtype_that_is_registered_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr("sparsify_crosscoder.store.dtypes.registry._known", {"int8": INT8})
    mine = StoreDtype("mine", INT8.encode, INT8.decode, INT8.row_bytes, INT8.rows, INT8.tables)
    register_dtype(mine)
    assert get_dtype("mine") is mine
    assert dtype_names() == ("int8", "mine")
    with pytest.raises(ValueError, match="'mine' already"):
        register_dtype(mine)


def test_an_unknown_dtype_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"bfloat16, float16, float32, int8, not 'int4'"):
        get_dtype("int4")


def test_what_a_package_offers_as_a_dtype_must_be_one(tmp_path, monkeypatch):
    offered = {"sparsify_crosscoder.store_dtypes": {"odd": "math:pi"}}
    monkeypatch.syspath_prepend(str(write_plugin(tmp_path / "site", "odd-dtype", {}, offered)))
    with pytest.raises(ValueError, match="'odd' of math:pi is no StoreDtype"):
        get_dtype("odd")
