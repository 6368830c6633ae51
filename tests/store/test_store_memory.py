"""A reader's memory does not grow with the store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sparsify_crosscoder.store.manifest import FORMAT, MANIFEST, VERSION, new_part
from sparsify_crosscoder.store.shards import write_shard

WIDTHS = [1024, 512]
SHARDS, SHARD_PAIRS, WINDOW_PAIRS = 44, 8192, 128
READER = """
import json, resource, sys
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream

def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

imports = peak()
store = ActivationStore.open(sys.argv[1])
stream = StoreStream(store, seed=0, whole_pairs=int(sys.argv[2]))
pairs = sum(len(batch[0]) for batch in stream.batches(0, len(store) // 512, 512))
print(json.dumps({"pairs": pairs, "reading": peak() - imports}))
"""


@pytest.fixture(scope="module")
def large_store(tmp_path_factory) -> Path:
    """A store of 1.1 GB, of random numbers."""
    path = tmp_path_factory.mktemp("large") / "store"
    path.mkdir()
    count = SHARDS * SHARD_PAIRS // WINDOW_PAIRS
    windows = Dataset.from_dict({"text_id": range(count), "num_pairs": [WINDOW_PAIRS] * count})
    windows.save_to_disk(path / "windows_000")
    settings = {"batch_size": 1, "shard_pairs": SHARD_PAIRS, "dtype": "bfloat16"}
    part = new_part(windows, settings, None, before=[]) | {"complete": True}
    generator = torch.Generator().manual_seed(0)
    for number in range(SHARDS):
        pairs = [torch.randn(SHARD_PAIRS, width, generator=generator) for width in WIDTHS]
        file = path / f"shard_{number:06d}.safetensors"
        part["shards"].append(write_shard(file, pairs, "bfloat16"))
    sources = [{"name": "-", "hookpoint": "-", "width": width} for width in WIDTHS]
    manifest = {"format": FORMAT, "version": VERSION, "sources": sources, "parts": [part]}
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("whole_pairs", [0, 10**9], ids=["in stretches", "pair by pair"])
def test_reading_a_store_larger_than_a_gigabyte_takes_much_less(large_store, whole_pairs):
    assert sum(file.stat().st_size for file in large_store.glob("shard_*")) > 1.1e9
    done = subprocess.run(
        [sys.executable, "-c", READER, str(large_store), str(whole_pairs)],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["pairs"] == SHARDS * SHARD_PAIRS
    assert read["reading"] < 7e8
