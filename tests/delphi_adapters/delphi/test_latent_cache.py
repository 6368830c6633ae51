"""The cache's files against those of delphi's own LatentCache, and read by delphi."""

import json
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import delphi_adapters.delphi.compat  # noqa: F401
from delphi_adapters.delphi.latent_cache import CacheLayout, LatentCacheWriter
from delphi_adapters.delphi.latent_statistics import LatentStatistics
from delphi_adapters.delphi.tensor_file import TensorFile
from sparsify_crosscoder.crosscoders import SparseCode

from delphi.latents.cache import LatentCache  # isort: skip

M, CTX, ROWS = 50, 8, 24


def dense_latents(seed=0, share=0.1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(ROWS, CTX, M, generator=generator)
    latents *= torch.rand(latents.shape, generator=generator) < share
    latents[0, 0, 7] = 5e-6  # below what delphi keeps
    return latents


def delphis_own(latents, tokens, folder, n_splits):
    """What delphi writes of dense latents, batch by batch."""
    cache = LatentCache(types.SimpleNamespace(), {}, batch_size=4)
    for number, (part, ids) in enumerate(zip(latents.split(4), tokens.split(4), strict=True)):
        cache.cache.add(part, ids, number, "layers.3")
    cache.width = M
    cache.cache.save()
    cache.save_splits(n_splits, folder)
    return folder / "layers.3"


def add_all(writer, latents, tokens, sizes):
    """Add the same as parts of so many tokens; every token is a pair of window `token // 10`."""
    flat, ids = latents.flatten(0, 1), tokens.flatten()
    start = 0
    for size in sizes:
        part = flat[start : start + size]
        rows, indices = part.nonzero(as_tuple=True)
        code = SparseCode(part[rows, indices], indices, rows, (size, M))
        numbers = torch.arange(start, start + size)
        place = torch.arange(size)
        writer.add(code, ids[start : start + size], place, numbers // 10, numbers % 10)
        start += size
    assert start == len(flat)


CONFIG = {"model_name": "model", "dataset_repo": "texts"}


@pytest.mark.parametrize("n_splits", [1, 3, 7])
@pytest.mark.parametrize("sizes", [[ROWS * CTX], [50, 1, 100, 41]])
def test_the_files_are_delphis_own_to_the_bit(tmp_path, n_splits, sizes):
    latents = dense_latents()
    tokens = torch.randint(0, 1000, (ROWS, CTX), generator=torch.Generator().manual_seed(1))
    theirs = delphis_own(latents, tokens, tmp_path / "theirs", n_splits)
    writer = LatentCacheWriter(tmp_path / "ours", CacheLayout("layers.3", M, CTX, n_splits))
    add_all(writer, latents, tokens, sizes)
    writer.finish(CONFIG)
    ours = tmp_path / "ours" / "layers.3"
    names = sorted(p.name for p in theirs.glob("*.safetensors"))
    assert names == sorted(writer.layout.files)
    for name in names:
        expected, found = load_file(theirs / name), load_file(ours / name)
        assert expected.keys() == found.keys()
        for key in expected:
            assert expected[key].dtype == found[key].dtype
            np.testing.assert_array_equal(expected[key], found[key])
    assert not (ours / "parts").exists()
    config = json.loads((ours / "config.json").read_text(encoding="utf-8"))
    assert config["model_name"] == "model" and config["ctx_len"] == CTX


def test_a_killed_run_goes_on_and_ends_with_the_same_files(tmp_path):
    latents, tokens = dense_latents(), torch.arange(ROWS * CTX).view(ROWS, CTX)
    layout = CacheLayout("layers.3", M, CTX, 3)
    whole = LatentCacheWriter(tmp_path / "whole", layout)
    add_all(whole, latents, tokens, [64, 64, 64])
    whole.finish(CONFIG)

    flat = latents.flatten(0, 1)
    for part in range(3):
        writer = LatentCacheWriter(tmp_path / "killed", layout)
        assert writer.num_parts == part and not writer.finished
        if part == 2:  # killed while the part was written
            for folder in (writer.folder / "parts", writer.folder):
                (folder / ".tmp-1-2.safetensors").write_bytes(b"torn")
        here = flat[part * 64 : part * 64 + 64]
        rows, indices = here.nonzero(as_tuple=True)
        code = SparseCode(here[rows, indices], indices, rows, (64, M))
        numbers = torch.arange(part * 64, part * 64 + 64)
        writer.add(code, numbers, torch.arange(64), numbers // 10, numbers % 10)
    LatentCacheWriter(tmp_path / "killed", layout).finish(CONFIG)
    again = LatentCacheWriter(tmp_path / "killed", layout)
    assert again.finished
    assert not list((tmp_path / "killed").rglob(".tmp*"))
    for name in [*layout.files, "statistics/latents.safetensors", "config.json"]:
        files = [tmp_path / run / "layers.3" / name for run in ("whole", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    (again.folder / "parts").mkdir()  # killed while the parts were removed
    (again.folder / "parts" / "settings.json").write_text("{}", encoding="utf-8")
    assert LatentCacheWriter(tmp_path / "killed", layout).finished
    assert not (again.folder / "parts").exists()
    with pytest.raises(ValueError, match="finished"):
        again.add(code, numbers, numbers, numbers, numbers)


def test_another_cache_in_the_folder_is_not_touched(tmp_path):
    layout = CacheLayout("layers.3", M, CTX, 3)
    writer = LatentCacheWriter(tmp_path, layout, {"coder": "one"})
    for other, what in (
        ((CacheLayout("layers.3", M, CTX, 4), {"coder": "one"}), "n_splits"),
        ((layout, {"coder": "two"}), "coder"),
    ):
        with pytest.raises(ValueError, match=what):
            LatentCacheWriter(tmp_path, *other)
    add_all(writer, dense_latents(), torch.zeros(ROWS, CTX), [ROWS * CTX])
    writer.finish(CONFIG)
    with pytest.raises(ValueError, match="coder"):
        LatentCacheWriter(tmp_path, layout, {"coder": "two"})


def test_chosen_latents_alone_are_kept(tmp_path):
    latents = dense_latents()
    layout = CacheLayout("layers.3", M, CTX, 2)
    writer = LatentCacheWriter(tmp_path, layout, latents=torch.tensor([30, 4]))
    add_all(writer, latents, torch.zeros(ROWS, CTX), [ROWS * CTX])
    writer.finish(CONFIG)
    counts = (latents > 1e-5).sum((0, 1))
    assert writer.statistics.firings[[4, 30]].tolist() == counts[[4, 30]].tolist()
    assert writer.statistics.firings.sum() == counts[[4, 30]].sum()
    for name, latent in zip(layout.files, (4, 30 - 25), strict=True):
        assert set(load_file(tmp_path / "layers.3" / name)["locations"][:, 2]) == {latent}
    with pytest.raises(ValueError, match=r"latents 0\.\.49"):
        LatentCacheWriter(tmp_path / "other", layout, latents=torch.tensor([50]))


def test_too_little_text_for_a_row_is_refused(tmp_path):
    writer = LatentCacheWriter(tmp_path, CacheLayout("layers.3", M, 1000))
    add_all(writer, dense_latents(), torch.zeros(ROWS, CTX), [ROWS * CTX])
    with pytest.raises(ValueError, match="shorter ctx_len"):
        writer.finish(CONFIG)


@pytest.mark.parametrize("options", [{"ctx_len": 0}, {"n_splits": 51}, {"n_splits": 0}])
def test_sizes_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"at least 1|cannot be split"):
        CacheLayout("layers.3", M, **options)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, ROWS * CTX - 1), contexts=st.integers(1, 6))
def test_statistics_are_those_of_all_activations(seed, cut, contexts):
    flat = dense_latents(seed, share=0.05).flatten(0, 1)
    statistics = LatentStatistics.empty(M, contexts)
    # Whole windows only, as a cache adds them.
    for start, stop in ((0, cut // 10 * 10), (cut // 10 * 10, len(flat))):
        rows, latents = (x.numpy() for x in flat[start:stop].nonzero(as_tuple=True))
        acts = flat[start:stop].numpy()[rows, latents]
        rows = rows + start
        statistics.update(latents, acts, rows // 10, rows % 10)
    assert statistics.firings.tolist() == (flat > 0).sum(0).tolist()
    assert statistics.max_activation.tolist() == flat.max(0).values.tolist()
    assert statistics.dead.tolist() == (~(flat > 0).any(0)).tolist()
    for latent in range(M):
        column = flat[:, latent].tolist()
        best = [max(column[i : i + 10]) for i in range(0, len(column), 10)]
        expected = sorted((a for a in best if a > 0), reverse=True)[:contexts]
        found = statistics.context_activations[latent]
        assert found[found > 0].tolist() == expected
        for act, (window, pair) in zip(found, statistics.context_pairs[latent], strict=True):
            assert window == pair == -1 if act == 0 else column[window * 10 + pair] == act


def test_a_split_of_which_nothing_fires_is_empty(tmp_path):
    latents = torch.zeros(ROWS, CTX, M)
    latents[3, 2, 0] = 1.5
    tokens = torch.arange(ROWS * CTX).view(ROWS, CTX)
    writer = LatentCacheWriter(tmp_path, CacheLayout("layers.3", M, CTX, 5))
    add_all(writer, latents, tokens, [ROWS * CTX // 2] * 2)
    writer.finish(CONFIG)
    found = [load_file(tmp_path / "layers.3" / name) for name in writer.layout.files]
    assert [len(one["activations"]) for one in found] == [1, 0, 0, 0, 0]
    assert found[0]["locations"].tolist() == [[3, 2, 0]]
    for one in found:
        assert one["tokens"].tolist() == tokens.tolist()
    with pytest.raises(ValueError, match="not finished"):
        _ = LatentCacheWriter(tmp_path / "other", CacheLayout("layers.3", M, CTX, 5)).statistics


def test_a_tensor_that_was_not_written_whole_is_named(tmp_path):
    layout = {"a": (np.dtype(np.int64), (4,)), "b": (np.dtype(np.float16), (3,))}
    with TensorFile(tmp_path / "x", layout) as file:
        for values in ([7], [8, 9, 10]):
            file.append("a", np.array(values))
            file.append("b", np.array(values, dtype=np.float16)[:2])
    found = load_file(tmp_path / "x")
    assert found["a"].tolist() == [7, 8, 9, 10] and found["b"].tolist() == [7, 8, 9]
    file = TensorFile(tmp_path / "y", layout)
    with pytest.raises(ValueError, match="Not all of b"), file:
        file.append("a", np.arange(4))
