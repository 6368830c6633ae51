import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Sequence, Value
from safetensors import safe_open
from safetensors.torch import save_file

from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.store.plan import default_shard_pairs, shard_bounds
from sparsify_crosscoder.store.shards import bytes_per_pair
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.writing import writing
from sparsify_crosscoder.text.roles import Role
from sparsify_crosscoder.text.texts import load_texts
from sparsify_crosscoder.text.windows import prepare_windows
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer, wordpiece_tokenizer
from tests.support.windows import random_windows

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
        if file.is_file() and file.name != ".lock"
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


def test_pairs_of_plain_texts_are_plain_and_those_of_older_stores_unknown(copy):
    known = ActivationStore.open(copy).notes(torch.arange(9))
    assert known.known and set(known.role.tolist()) == {Role.PLAIN}
    assert known.end.tolist() == [end for ends in WINDOWS["ends"] for end in ends][:9]
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    del manifest["parts"][0]["windows"]["notes"]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    store = ActivationStore.open(copy)
    store.verify()
    notes = store.notes(torch.arange(9))
    assert not notes.known and notes.text_id.tolist() == known.text_id.tolist()
    # A harvest of conversations that is appended knows its own.
    said = {name: [[1] * count for count in WINDOWS["num_pairs"]] for name in ("roles", "writers")}
    more = random_windows(20, seed=5)
    for name in said:
        ones = [[1] * count for count in more["num_pairs"]]
        more = more.add_column(name, ones, feature=Sequence(Value("int8")))
    store = ActivationStore.create(copy, SOURCES, more, **SETTINGS, append=True)
    roles = store.notes(torch.arange(len(store))).role
    old = sum(WINDOWS["num_pairs"])
    assert set(roles[:old].tolist()) == {Role.UNKNOWN} and set(roles[old:].tolist()) == {1}
    # What is noted changes nothing in which windows these are.
    int8 = Sequence(Value("int8"))
    again = WINDOWS.add_column("roles", said["roles"], feature=int8)
    again = again.add_column("writers", said["writers"], feature=int8)
    assert len(ActivationStore.create(copy, SOURCES, again, **SETTINGS)) == len(store)


def test_changed_notes_are_damage(tmp_path):
    windows = random_windows(4)
    for name in ("roles", "writers"):
        windows = windows.add_column(name, [[1] * count for count in windows["num_pairs"]])
    ActivationStore.create(tmp_path / "store", SOURCES, windows, **SETTINGS)
    kept = windows.remove_columns("roles")
    kept = kept.add_column("roles", [[2] * count for count in windows["num_pairs"]])
    shutil.rmtree(tmp_path / "store" / "windows_000")
    kept.save_to_disk(tmp_path / "store" / "windows_000")
    with pytest.raises(ValueError, match="windows_000' is damaged"):
        ActivationStore.open(tmp_path / "store").verify()


def test_shards_are_the_harvest_of_whole_texts(whole):
    (part,) = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))["parts"]
    texts, counts = np.array(WINDOWS["text_id"]), np.array(WINDOWS["num_pairs"])
    rows = np.array([described["rows"] for described in part["shards"]])
    stops = np.searchsorted(np.cumsum(counts), np.cumsum(rows), side="left") + 1
    start = 0
    for number, stop in enumerate(stops):
        assert stop == len(texts) or texts[stop] != texts[stop - 1]
        if number < len(rows) - 1:
            last_text = texts[start:stop] == texts[stop - 1]
            assert rows[number] >= 30 > rows[number] - counts[start:stop][last_text].sum()
        raw, _ = harvest_windows(SOURCES, WINDOWS, range(start, stop), batch_size=3)
        tensors = shard(whole, number)
        assert torch.equal(tensors["activations_0"], raw[0])
        assert torch.equal(tensors["activations_1"], raw[1])
        start = stop
    assert start == len(WINDOWS)


@pytest.mark.parametrize(
    ("pairs", "texts", "shard_pairs", "bounds"),
    [
        ([5, 5, 5, 5], [1, 1, 2, 2], 7, [(0, 2), (2, 4)]),
        ([5, 5, 5, 5], [1, 1, 2, 3], 10, [(0, 2), (2, 4)]),
        ([5, 5, 5], [1, 2, 3], 6, [(0, 2), (2, 3)]),
        ([4, 4, 4, 4, 1], [1, 1, 1, 1, 2], 8, [(0, 2), (2, 4), (4, 5)]),
        ([1, 4, 4, 4], [1, 2, 2, 2], 8, [(0, 3), (3, 4)]),
        ([3], [9], 100, [(0, 1)]),
    ],
)
def test_shards_end_with_texts_unless_a_text_fills_one(pairs, texts, shard_pairs, bounds):
    assert shard_bounds(np.array(pairs), np.array(texts), shard_pairs) == bounds


def test_a_shard_has_at_most_256_mb_and_65536_pairs_by_default():
    assert default_shard_pairs([576, 640], "bfloat16") == 65_536
    for dtype, pairs in (("bfloat16", 16_384), ("int8", 32_736), ("float32", 8_192)):
        assert default_shard_pairs([4096, 4096], dtype) == pytest.approx(pairs, rel=1e-3)


def test_rows_come_in_the_order_asked_for_from_any_shard(whole):
    store = ActivationStore.open(whole)
    (part,) = store.manifest["parts"]
    everything = [
        torch.cat([shard(whole, n)[f"activations_{s}"] for n in range(len(part["shards"]))])
        for s in range(2)
    ]
    index = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    index = torch.cat([index, index[:5]])
    for order in (index, torch.arange(len(store)), torch.tensor([7, 7, 3]), index[:1]):
        for found, whole_source in zip(store.rows(order), everything, strict=True):
            assert torch.equal(found, whole_source[order])
    assert [x.shape for x in store.rows(torch.tensor([], dtype=torch.int64))] == [(0, 32), (0, 24)]


def test_a_pair_can_be_shown_as_text(tmp_path):
    lines = ["The dog sat on the mat.", "for name in argv: print(name)", "a fox, a dog"]
    texts = load_texts(_jsonl(tmp_path / "texts.jsonl", lines))
    tokenizers = [byte_level_tokenizer(bos=True), wordpiece_tokenizer()]
    windows = prepare_windows(texts, tokenizers, ctx_len=6)
    sources = [
        Source(name, "layers.1", tiny_model("llama", vocab_size=len(t)), t, 32)
        for name, t in zip("AB", tokenizers, strict=True)
    ]
    store = ActivationStore.create(tmp_path / "s", sources, windows, batch_size=3, shard_pairs=9)
    shown = {line: "" for line in lines}
    for number in range(len(store)):
        pair = store.pair(number)
        text, (start, end) = texts[pair.text_id]["text"], pair.characters
        assert pair.dataset == str(tmp_path / "texts.jsonl")
        for tokenizer, token in zip(tokenizers, pair.token_ids, strict=True):
            piece = tokenizer.decode([token]).strip().removeprefix("##").lower()
            assert piece == "<unk>" or (piece and text[start:end].lower().endswith(piece))
        shown[text] += text[start:end]
    assert shown == {line: line for line in lines}
    with pytest.raises(IndexError, match=f"numbered 0 to {len(store) - 1}"):
        store.pair(len(store))


def _jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_numbers_outside_of_the_store_are_refused(whole):
    store = ActivationStore.open(whole)
    for index in (-1, len(store)):
        with pytest.raises(IndexError, match=f"0 to {len(store) - 1}"):
            store.rows(torch.tensor([0, index]))


def test_the_manifest_says_what_was_harvested_and_how(whole):
    manifest = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
    first = manifest["sources"][0]
    assert (first["name"], first["hookpoint"], first["width"]) == ("A", "layers.2", 32)
    assert first["model_dtype"] == "bfloat16"
    (part,) = manifest["parts"]
    assert part["windows"]["pairs"] == sum(WINDOWS["num_pairs"])
    assert part["settings"] == {"batch_size": 3, "shard_pairs": 30, "dtype": "bfloat16"}
    assert part["complete"] is True


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
    written = sorted(path.glob("shard_*.safetensors"))
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
    (path / ".tmp-123-windows_000").mkdir()
    (path / ".tmpX1y2Z3").write_bytes(b"")  # as safetensors names its own
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    assert contents(path) == contents(whole)
    assert not list(path.glob(".tmp*"))


@pytest.mark.parametrize("moment", ["windows", "manifest"])
def test_a_harvest_killed_at_its_beginning_goes_on(whole, tmp_path, monkeypatch, moment):
    def kill(*args, **kwargs):
        raise Killed

    path = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if moment == "windows":
            patch.setattr(type(WINDOWS), "save_to_disk", kill)
        else:
            patch.setattr("sparsify_crosscoder.store.beginning.atomic_write_json", kill)
        with pytest.raises(Killed):
            ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    assert contents(path) == contents(whole)


def test_a_harvest_killed_at_its_end_leaves_nothing_behind(copy, whole):
    (part,) = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["parts"]
    (copy / "shard_000001.json").write_text(json.dumps(part["shards"][1]), encoding="utf-8")
    ActivationStore.create(copy, SOURCES, WINDOWS, **SETTINGS)
    assert contents(copy) == contents(whole)


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
    before = contents(whole)
    again = WINDOWS.select(range(len(WINDOWS))[::-1]).select(range(len(WINDOWS))[::-1])
    store = ActivationStore.create(whole, SOURCES, again, **SETTINGS)
    assert store.report.pairs == 0 and contents(whole) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
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


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_is_found_and_the_shard_named(copy):
    flip(copy / "shard_000001.safetensors", -100)
    with pytest.raises(ValueError, match=r"shard_000001.safetensors' is damaged.*checksum"):
        ActivationStore.open(copy).verify()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_whatever_byte_is_flipped_is_found_by_reading(tmp_path, dtype):
    path = tmp_path / "s"
    ActivationStore.create(path, SOURCES, WINDOWS, batch_size=3, shard_pairs=1000, dtype=dtype)
    file = path / "shard_000000.safetensors"
    good = file.read_bytes()
    body = 8 + int.from_bytes(good[:8], "little")
    for place in np.random.default_rng(0).integers(body, len(good), 40).tolist():
        flip(file, place)
        with pytest.raises(ValueError, match=r"shard_000000.safetensors' is damaged.*checksum"):
            store = ActivationStore.open(path)
            store.rows(torch.arange(len(store)))
        file.write_bytes(good)
    store = ActivationStore.open(path)
    store.rows(torch.arange(len(store)))


def test_pairs_elsewhere_in_a_damaged_shard_can_be_read(tmp_path):
    path = tmp_path / "s"
    windows = random_windows(60, max_tokens=60)
    ActivationStore.create(path, SOURCES, windows, batch_size=3)
    file = path / "shard_000000.safetensors"
    tensors = shard(path, 0)
    assert len(tensors["activations_0"]) > 300
    tensors["activations_1"][200, 3] += 1
    save_file(tensors, file)
    store = ActivationStore.open(path)
    store.rows(torch.arange(192))
    with pytest.raises(ValueError, match="pairs from 192 on do not match"):
        store.rows(torch.tensor([193]))


def test_flipped_bytes_of_an_unfinished_harvest_are_harvested_again(whole, tmp_path, caplog):
    path = tmp_path / "killed"
    hook = kill_after(6)
    with pytest.raises(Killed):
        ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    hook.remove()
    flip(path / "shard_000000.safetensors", -100)
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    assert "shard_000000.safetensors' is damaged and is harvested again" in caplog.text
    assert contents(path) == contents(whole)


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


@pytest.mark.parametrize("lost", ["shard_000001.safetensors", "windows_000"])
def test_a_deleted_part_is_made_anew_by_the_same_harvest(copy, whole, lost):
    part = copy / lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    ActivationStore.create(copy, SOURCES, WINDOWS, **SETTINGS)
    assert contents(copy) == contents(whole)


def test_lost_windows_are_named(copy):
    shutil.rmtree(copy / "windows_000")
    with pytest.raises(ValueError, match=r"windows_000' is damaged"):
        ActivationStore.open(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "sparsify-crosscoder activations", "vers', "manifest.json' is damaged"),
        ('{"format": "another"}', "does not describe activations"),
        ('{"format": "sparsify-crosscoder activations", "version": 1}', "has version 1"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(copy, text, message):
    (copy / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ActivationStore.open(copy)


def test_a_full_disk_is_noticed_before_any_model_runs(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    hook = kill_after(0)
    with pytest.raises(ValueError, match="GB are free"):
        ActivationStore.create(tmp_path / "store", SOURCES, WINDOWS, **SETTINGS)
    hook.remove()


@pytest.fixture
def full_disk():
    """A function that limits how large files may become, as a disk that runs full does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


STOPPED_AT = ["manifest.json", "windows_000", "shard_000000.safetensors"]


@pytest.mark.parametrize("stopped_at", STOPPED_AT)
def test_a_disk_that_runs_full_stops_the_harvest_which_then_goes_on(
    tmp_path, full_disk, stopped_at
):
    settings = {"batch_size": 3, "shard_pairs": 100, "dtype": "float32"}
    whole = ActivationStore.create(tmp_path / "whole", SOURCES, WINDOWS, **settings).path
    limits = [1000, (whole / "manifest.json").stat().st_size]
    limits += [(whole / "shard_000000.safetensors").stat().st_size - 1]
    full_disk(dict(zip(STOPPED_AT, limits, strict=True))[stopped_at])
    path = tmp_path / "s"
    with pytest.raises(OSError, match=f"{stopped_at}' could not be written (.|\n)*Make room"):
        ActivationStore.create(path, SOURCES, WINDOWS, **settings)
    assert not list(path.glob(".tmp*"))
    full_disk(None)
    ActivationStore.create(path, SOURCES, WINDOWS, **settings)
    assert contents(path) == contents(whole)


def test_activations_too_large_for_the_dtype_are_refused(tmp_path):
    large = tiny_model("llama")
    large.embed_tokens.weight *= 1e7
    sources = [SOURCES[0], Source("L", "layers.0", large, TOKENIZER, 32)]
    with pytest.raises(ValueError, match=r"source 1 are too large for float16"):
        ActivationStore.create(tmp_path / "s", sources, WINDOWS, **SETTINGS, dtype="float16")


def test_windows_without_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to harvest"):
        ActivationStore.create(tmp_path / "s", SOURCES, WINDOWS.select([]), **SETTINGS)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux what is mapped")
def test_rows_are_read_from_mapped_files_which_are_let_go(whole, monkeypatch):
    def mapped():
        with open("/proc/self/maps", encoding="utf-8") as file:
            return "shard_000000" in file.read()

    store = ActivationStore.open(whole)
    store.rows(torch.tensor([0]))
    assert mapped()
    monkeypatch.setattr("sparsify_crosscoder.store.store._MAPPED_AT_ONCE", 0)
    store.rows(torch.tensor([len(store) - 1]))
    assert not mapped()


# int8


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "exact"
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS, dtype="float32")
    return ActivationStore.open(path)


def test_int8_rows_are_near_the_exact_ones_in_every_dimension(tmp_path, exact):
    sources = [Source("A", "layers.2", tiny_model("llama"), TOKENIZER, 32), SOURCES[1]]
    sources[0].model.embed_tokens.weight[:, 3] *= 300  # as some dimensions of language models are
    sources[0].model.embed_tokens.weight[:, 5] += 300
    exact = ActivationStore.create(tmp_path / "e", sources, WINDOWS, **SETTINGS, dtype="float32")
    store = ActivationStore.create(tmp_path / "s", sources, WINDOWS, **SETTINGS, dtype="int8")
    index = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    for found, expected in zip(store.rows(index), exact.rows(index), strict=True):
        assert found.dtype == torch.float32
        error = (found - expected).var(0) / expected.var(0)
        assert 0 < error.max() < 1e-3


def test_an_int8_row_is_what_its_four_tensors_say(tmp_path):
    store = ActivationStore.create(tmp_path / "s", SOURCES, WINDOWS, **SETTINGS, dtype="int8")
    tensors = shard(tmp_path / "s", 1)
    start = store.manifest["parts"][0]["shards"][0]["rows"]
    for s, found in enumerate(store.rows(torch.arange(start, start + 5))):
        q, scale = tensors[f"activations_{s}"][:5].float(), tensors[f"scale_{s}"][:5, None]
        expected = tensors[f"center_{s}"] + tensors[f"spread_{s}"] * scale * q
        torch.testing.assert_close(found, expected)


def test_a_shard_of_one_pair_is_exact_in_int8(tmp_path):
    windows = WINDOWS.select([list(WINDOWS["num_pairs"]).index(1)])
    store = ActivationStore.create(tmp_path / "s", SOURCES, windows, batch_size=1, dtype="int8")
    raw, _ = harvest_windows(SOURCES, windows, [0], batch_size=1)
    for found, expected in zip(store.rows(torch.tensor([0])), raw, strict=True):
        assert torch.equal(found, expected.float())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
def test_a_pair_takes_the_bytes_that_are_said(tmp_path, dtype):
    windows = random_windows(400, max_tokens=60)
    path = tmp_path / "s"
    store = ActivationStore.create(path, SOURCES, windows, batch_size=50, dtype=dtype)
    assert store.dtype == dtype
    expected = len(store) * bytes_per_pair([32, 24], dtype)
    assert expected < store.num_bytes < 1.02 * expected + 2000


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keeps activations as bfloat16, float16, float32, int8"):
        ActivationStore.create(tmp_path / "s", SOURCES, WINDOWS, batch_size=1, dtype="float64")
    assert not (tmp_path / "s").exists()


# Several harvests in one store


def test_texts_appended_to_a_store_follow_its_own(whole, copy):
    more = random_windows(9, seed=5)
    store = ActivationStore.create(copy, SOURCES, more, **SETTINGS, append=True)
    first, second = ActivationStore.open(whole), store.manifest["parts"][1]
    assert len(store) == len(first) + sum(more["num_pairs"])
    assert second["first_shard"] == len(store.manifest["parts"][0]["shards"])
    raw, _ = harvest_windows(SOURCES, more, range(9), batch_size=9)
    for found, old, new in zip(
        store.rows(torch.arange(len(store))), first.rows(torch.arange(len(first))), raw, strict=True
    ):
        assert torch.equal(found[: len(first)], old)
        torch.testing.assert_close(found[len(first) :], new, atol=0.2, rtol=0)
    texts = np.array(store.windows["text_id"])
    assert not set(texts[: len(WINDOWS)]) & set(texts[len(WINDOWS) :])
    assert store.pair(len(first)).token_ids == [
        more[0][f"input_ids_{s}"][more[0][f"pairs_{s}"][0]] for s in (0, 1)
    ]
    store.verify()
    again = ActivationStore.create(copy, SOURCES, more, **SETTINGS, append=True)
    assert again.report.pairs == 0 and len(again) == len(store)


def test_a_longer_harvest_of_the_same_texts_adds_what_is_new(tmp_path, whole):
    path = tmp_path / "s"
    ActivationStore.create(path, SOURCES, WINDOWS.select(range(8)), **SETTINGS)
    with pytest.raises(ValueError, match=r"holds other activations(.|\n)*--append"):
        ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    store = ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS, append=True)
    assert store.report.pairs == sum(WINDOWS["num_pairs"][8:])
    assert store.windows.to_dict() == WINDOWS.to_dict()
    index = torch.arange(len(store))
    for found, expected in zip(
        store.rows(index), ActivationStore.open(whole).rows(index), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=0.2, rtol=0)
    assert ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS).report.pairs == 0


def test_an_append_that_was_killed_goes_on_or_is_dropped(copy, whole):
    more = random_windows(9, seed=5)
    hook = kill_after(1)
    with pytest.raises(Killed):
        ActivationStore.create(copy, SOURCES, more, **SETTINGS, append=True)
    hook.remove()
    with pytest.raises(ValueError, match=r"being added to .* --drop_unfinished` gives it up"):
        ActivationStore.open(copy)
    with pytest.raises(ValueError, match="has an unfinished part, so nothing can be added"):
        ActivationStore.create(copy, SOURCES, random_windows(4, seed=6), **SETTINGS, append=True)
    dropped = shutil.copytree(copy, copy.parent / "dropped")
    ActivationStore.create(copy, SOURCES, more, **SETTINGS, append=True)
    assert len(ActivationStore.open(copy).manifest["parts"]) == 2
    ActivationStore.drop_unfinished(dropped)
    assert contents(dropped) == contents(whole)
    with pytest.raises(ValueError, match="has no unfinished part"):
        ActivationStore.drop_unfinished(dropped)


def test_stores_of_different_texts_merge(whole, tmp_path):
    more = random_windows(9, seed=5)
    second = ActivationStore.create(tmp_path / "second", SOURCES, more, **SETTINGS)
    merged = ActivationStore.merge(tmp_path / "merged", [whole, second.path])
    appended = shutil.copytree(whole, tmp_path / "appended")
    ActivationStore.create(appended, SOURCES, more, **SETTINGS, append=True)
    assert contents(merged.path).keys() == contents(appended).keys()
    index = torch.arange(len(merged))
    for found, expected in zip(
        merged.rows(index), ActivationStore.open(appended).rows(index), strict=True
    ):
        assert torch.equal(found, expected)
    assert merged.windows.to_dict() == ActivationStore.open(appended).windows.to_dict()
    merged.verify()
    with pytest.raises(ValueError, match="merged' exists already"):
        ActivationStore.merge(tmp_path / "merged", [whole])


def test_unfinished_stores_of_one_harvest_complete_each_other(whole, tmp_path):
    halves = []
    for kept in (0, 1):
        half = shutil.copytree(whole, tmp_path / str(kept))
        manifest = json.loads((half / "manifest.json").read_text(encoding="utf-8"))
        (part,) = manifest["parts"]
        for number, described in enumerate(part["shards"]):
            if number % 2 == kept:
                (half / f"shard_{number:06d}.json").write_text(
                    json.dumps(described), encoding="utf-8"
                )
            else:
                (half / described["file"]).unlink()
        part |= {"complete": False, "shards": []}
        (half / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        halves.append(half)
    with pytest.raises(ValueError, match=r"Shard 1 of \d+ is in none of '.*0'"):
        ActivationStore.merge(tmp_path / "merged", halves[:1])
    assert not (tmp_path / "merged").exists()
    ActivationStore.merge(tmp_path / "merged", halves)
    read = lambda path: {k: v for k, v in contents(path).items() if k.startswith("shard")}  # noqa: E731
    assert read(tmp_path / "merged") == read(whole)


def test_stores_that_do_not_go_together_are_not_merged(whole, tmp_path):
    others = {
        "sources": {"sources": SOURCES[::-1], "windows": random_windows(4)},
        "settings": {"sources": SOURCES, "windows": random_windows(4), "dtype": "float32"},
    }
    for what, arguments in others.items():
        other = ActivationStore.create(tmp_path / what, **arguments, **SETTINGS)
        with pytest.raises(ValueError, match=rf"holds other activations(.|\n)*{what}: "):
            ActivationStore.merge(tmp_path / "merged", [whole, other.path])


def test_a_damaged_store_is_not_merged(copy, tmp_path):
    flip(copy / "shard_000001.safetensors", -100)
    with pytest.raises(ValueError, match=r"shard_000001.safetensors' is damaged"):
        ActivationStore.merge(tmp_path / "merged", [copy])
    assert not (tmp_path / "merged").exists()


def test_a_model_that_moved_is_the_same_source(whole):
    moved = [dataclasses.replace(source, name=f"/elsewhere/{source.name}") for source in SOURCES]
    assert ActivationStore.create(whole, moved, WINDOWS, **SETTINGS).report.pairs == 0


def test_how_a_tokenizer_was_last_called_does_not_make_another_source(whole):
    tokenizer = byte_level_tokenizer()
    tokenizer(["a text"], truncation=True, max_length=3, padding="max_length")
    again = [dataclasses.replace(source, tokenizer=tokenizer) for source in SOURCES]
    assert ActivationStore.create(whole, again, WINDOWS, **SETTINGS).report.pairs == 0
    tokenizer.add_tokens(["another"])
    with pytest.raises(ValueError, match="other activations"):
        ActivationStore.create(whole, again, WINDOWS, **SETTINGS)


def test_a_model_with_other_weights_is_another_source(whole):
    model = tiny_model("llama", seed=1).bfloat16()
    sources = [dataclasses.replace(SOURCES[0], model=model), SOURCES[1]]
    with pytest.raises(ValueError, match=r"holds other activations(.|\n)*sources: "):
        ActivationStore.create(whole, sources, WINDOWS, **SETTINGS)


def hold(path: Path, held: Connection) -> None:
    """Write to a store until the other end says that it is enough."""
    with writing(path):
        held.send("locked")
        held.recv()


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "s"
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(path, there))
    other.start()
    try:
        assert here.recv() == "locked"
        with pytest.raises(ValueError, match="Another process is writing to"):
            ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
    finally:
        other.kill()
        other.join()
    ActivationStore.create(path, SOURCES, WINDOWS, **SETTINGS)
