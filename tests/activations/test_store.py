import hashlib
import json
import os
import shutil

import pytest
import torch
from models_for_tests import tiny_model
from safetensors import safe_open
from tokenizers_for_tests import byte_level_tokenizer
from windows_for_tests import random_windows

from sparsify_crosscoder.activations.harvest import harvest_windows
from sparsify_crosscoder.activations.sources import Source
from sparsify_crosscoder.activations.store import ActivationStore

TOKENIZER = byte_level_tokenizer()
SOURCES = [
    Source("A", "layers.2", tiny_model("llama").bfloat16(), TOKENIZER, 32),
    Source("B", "h.1", tiny_model("gpt2", width=24).bfloat16(), TOKENIZER, 24),
]
WINDOWS = random_windows(20)
SETTINGS = {"batch_size": 3, "shard_pairs": 30}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "whole"
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def contents(path):
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def shard(path, number):
    with safe_open(path / f"shard_{number:06d}.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def test_a_store_holds_every_pair_of_its_windows_in_order(whole):
    store = ActivationStore.open(whole)
    window, pair = store.provenance(torch.arange(len(store)))
    expected = [(w, p) for w, count in enumerate(WINDOWS["num_pairs"]) for p in range(count)]
    assert list(zip(window.tolist(), pair.tolist(), strict=True)) == expected
    assert store.d_sources == [32, 24]
    assert store.windows.to_dict() == WINDOWS.to_dict()


def test_a_shard_is_the_harvest_of_its_windows(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    start = 0
    for number, described in enumerate(manifest["shards"]):
        tensors = shard(whole, number)
        windows = tensors["window"].unique().tolist()
        assert windows == list(range(start, start + len(windows)))
        start += len(windows)
        counts = [WINDOWS["num_pairs"][w] for w in windows]
        assert sum(counts) == described["rows"]
        if number < len(manifest["shards"]) - 1:
            assert sum(counts) >= 30 > sum(counts[:-1])
        raw, _ = harvest_windows(SOURCES, WINDOWS, windows, batch_size=3)
        assert torch.equal(tensors["activations_0"], raw[0])
        assert torch.equal(tensors["activations_1"], raw[1])
    assert start == len(WINDOWS)


def test_rows_come_in_the_order_asked_for_from_any_shard(whole):
    store = ActivationStore.open(whole)
    manifest = json.loads((whole / "manifest.json").read_text())
    everything = [
        torch.cat([shard(whole, n)[f"activations_{s}"] for n in range(len(manifest["shards"]))])
        for s in range(2)
    ]
    index = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    index = torch.cat([index, index[:5]])
    for found, whole_source in zip(store.rows(index), everything, strict=True):
        assert torch.equal(found, whole_source[index])
    assert [x.shape for x in store.rows(torch.tensor([], dtype=torch.int64))] == [(0, 32), (0, 24)]


def test_numbers_outside_of_the_store_are_refused(whole):
    store = ActivationStore.open(whole)
    for index in (-1, len(store)):
        with pytest.raises(IndexError, match=f"0 to {len(store) - 1}"):
            store.rows(torch.tensor([0, index]))


def test_the_manifest_says_what_was_harvested_and_how(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    first = manifest["sources"][0]
    assert (first["name"], first["hookpoint"], first["width"]) == ("A", "layers.2", 32)
    assert first["model_dtype"] == "bfloat16"
    assert manifest["windows"]["pairs"] == sum(WINDOWS["num_pairs"])
    assert manifest["settings"] == {"batch_size": 3, "shard_pairs": 30, "dtype": "bfloat16"}
    assert manifest["complete"] is True


class Killed(BaseException):
    """As unforeseen as a signal."""


def kill_after(forwards):
    """A hook for a model's first layer that ends everything after so many forwards."""
    remaining = [forwards]

    def hook(module, args, output):
        remaining[0] -= 1
        if remaining[0] < 0:
            raise Killed

    return SOURCES[1].model.h[0].register_forward_hook(hook)


@pytest.mark.parametrize("forwards", [0, 1, 4, 6])
def test_a_killed_harvest_goes_on_to_the_same_bytes(whole, tmp_path, forwards):
    path = tmp_path / "killed"
    hook = kill_after(forwards)
    with pytest.raises(Killed):
        ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    hook.remove()
    written = sorted(path.glob("shard_*"))
    before = [file.stat().st_mtime_ns for file in written]
    with pytest.raises(ValueError, match=r"is unfinished .* it goes on where it stopped"):
        ActivationStore.open(path)
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    assert contents(path) == contents(whole)
    assert [file.stat().st_mtime_ns for file in written] == before
    if forwards == 6:
        assert written


def test_what_a_killed_process_left_half_written_is_removed(whole, tmp_path):
    path = tmp_path / "killed"
    path.mkdir()
    (path / ".tmp-123-shard_000000.safetensors").write_bytes(b"half")
    (path / ".tmp-123-windows").mkdir()
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    assert contents(path) == contents(whole)
    assert not list(path.glob(".tmp-*"))


def test_a_harvest_that_is_complete_runs_no_model_again(whole):
    before = contents(whole)
    hook = kill_after(0)
    store = ActivationStore.create(whole, SOURCES, WINDOWS, **SETTINGS)
    hook.remove()
    assert store.report.pairs == 0
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"windows": WINDOWS.select(range(19))}, "windows"),
        ({"sources": SOURCES[::-1]}, "sources"),
        ({"shard_pairs": 31}, "settings"),
        ({"dtype": "float32"}, "settings"),
    ],
)
def test_a_store_of_other_contents_is_refused_and_left_alone(whole, change, named):
    before = contents(whole)
    arguments = {"sources": SOURCES, "windows": WINDOWS, **SETTINGS, **change}
    with pytest.raises(ValueError, match=rf"holds other activations(.|\n)*{named}: "):
        ActivationStore.create(whole, **arguments)
    assert contents(whole) == before


def test_the_same_windows_through_another_dataset_are_the_same_store(whole):
    again = WINDOWS.select(range(len(WINDOWS))[::-1]).select(range(len(WINDOWS))[::-1])
    store = ActivationStore.create(whole, SOURCES, again, **SETTINGS)
    assert len(store) == sum(WINDOWS["num_pairs"])


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        ActivationStore.create(tmp_path, SOURCES, WINDOWS, **SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no activations"):
        ActivationStore.open(tmp_path)


def test_a_truncated_shard_is_named(copy):
    file = copy / "shard_000001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"shard_000001.safetensors' is damaged: it has"):
        ActivationStore.open(copy)


def test_a_missing_shard_is_named(copy):
    (copy / "shard_000002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard_000002.safetensors' is damaged: it is missing"):
        ActivationStore.open(copy)


def test_a_flipped_byte_is_found_and_the_shard_named(copy):
    file = copy / "shard_000001.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard_000001.safetensors' is damaged.*checksum"):
        ActivationStore.open(copy).verify()


def test_a_damaged_header_is_named_when_it_is_read(copy):
    file = copy / "shard_000001.safetensors"
    data = bytearray(file.read_bytes())
    data[20:40] = b"\xff" * 20
    file.write_bytes(data)
    store = ActivationStore.open(copy)
    with pytest.raises(ValueError, match=r"shard_000001.safetensors' is damaged"):
        store.rows(torch.arange(len(store)))


def test_an_undamaged_store_passes_verification(whole):
    ActivationStore.open(whole).verify()


@pytest.mark.parametrize("lost", ["shard_000001.safetensors", "windows"])
def test_a_deleted_part_is_made_anew_by_the_same_harvest(copy, whole, lost):
    part = copy / lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    ActivationStore.create(copy, SOURCES, WINDOWS, **SETTINGS)
    assert contents(copy) == contents(whole)


def test_lost_windows_are_named(copy):
    shutil.rmtree(copy / "windows")
    with pytest.raises(ValueError, match=r"windows' is damaged"):
        ActivationStore.open(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "sparsify-crosscoder activations", "vers', "manifest.json' is damaged"),
        ('{"format": "another"}', "does not describe activations"),
        ('{"format": "sparsify-crosscoder activations", "version": 2}', "has version 2"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(copy, text, message):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ActivationStore.open(copy)


def test_a_full_disk_is_noticed_before_any_model_runs(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    hook = kill_after(0)
    with pytest.raises(ValueError, match="GB are free"):
        ActivationStore.create(tmp_path / "store", SOURCES, WINDOWS, **SETTINGS)
    hook.remove()


def test_activations_too_large_for_the_dtype_are_refused(tmp_path):
    large = tiny_model("llama")
    large.embed_tokens.weight *= 1e7
    sources = [SOURCES[0], Source("L", "layers.0", large, TOKENIZER, 32)]
    with pytest.raises(ValueError, match=r"source 1 are too large for torch.float16"):
        ActivationStore.create(tmp_path / "s", sources, WINDOWS, **SETTINGS, dtype="float16")


def test_windows_without_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to harvest"):
        ActivationStore.create(tmp_path / "s", SOURCES, WINDOWS.select([]), **SETTINGS)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux what is mapped")
def test_reading_rows_does_not_copy_a_store_into_memory(whole):
    store = ActivationStore.open(whole)
    store.rows(torch.tensor([0]))
    address = store._shards[0]["activations_0"].data_ptr()
    with open("/proc/self/maps") as file:
        spans = [line.split()[0].split("-") for line in file if "shard_000000" in line]
    assert any(int(low, 16) <= address < int(high, 16) for low, high in spans)
