"""How fast shuffled batches come from a store, beside the disk and beside training."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from demo_training import OPTIONS, train
from rates import Rates, Timed, add, ratio, timed
from step_report import table
from torch import Tensor

from sparsify_crosscoder.store.order import WHOLE_PAIRS
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream
from sparsify_crosscoder.store.tensor_stream import TensorStream

BATCH: int = OPTIONS["pairs_per_step"]
REGIMES = {"in stretches": 0, "pair by pair": WHOLE_PAIRS}
EPOCHS = ("first epoch", "second epoch")
TRAINER = "trainer"
TRAINED_ON, TRAINED_WITHOUT_TIMING, TRAINED = 32_768, 8, 30
_READ_AT_ONCE = 1 << 22


def read_epochs(path: Path, whole_pairs: int) -> list[Timed]:
    """Two epochs of a store opened anew: in the first, every block's checksum is tested."""
    store = ActivationStore.open(path)
    stream = StoreStream(store, seed=0, whole_pairs=whole_pairs)
    steps = len(store) // BATCH

    def read(first: int) -> None:
        for _ in stream.batches(first, first + steps, BATCH):
            pass

    return [timed(lambda first=first: read(first), steps * BATCH) for first in (0, steps)]


def read_files(store: ActivationStore) -> Timed:
    """All shards from beginning to end, 4 MB at a time."""

    def read() -> None:
        for file in sorted(store.path.glob("shard_*")):
            with open(file, "rb", buffering=0) as opened:
                while opened.read(_READ_AT_ONCE):
                    pass

    return timed(read, len(store))


def train_steps(
    activations: Sequence[Tensor],
    sources: list[dict[str, Any]],
    folder: Path,
    *,
    device: str | torch.device,
    steps: int = TRAINED,
) -> Timed:
    """Steps of the demo's trainer on pairs in memory, the first few not counted.

    No latent is dead so early, so steps are shorter than most of the demo's.
    """
    clock: list[tuple[float, float]] = []

    def note() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        clock.append((perf_counter(), process_time()))

    pairs = TensorStream(activations, seed=0)
    total = TRAINED_WITHOUT_TIMING + steps
    train(pairs, None, sources, folder, steps=total, device=device, after_step=note)
    (begun, cpu_begun), (ended, cpu_ended) = clock[TRAINED_WITHOUT_TIMING - 1], clock[-1]
    return Timed(steps * BATCH, ended - begun, cpu_ended - cpu_begun)


def measure_reading(
    stores: Mapping[str, ActivationStore],
    folder: Path,
    *,
    rounds: int,
    device: str | torch.device = "cpu",
    steps: int = TRAINED,
) -> dict[str, Any]:
    """Rates of all ways to read the stores, by dtype, and of the trainer, in turns."""
    rates: Rates = {}
    cpu_rates: Rates = {}
    one = next(iter(stores.values()))
    in_memory = [x.bfloat16() for x in one.rows(torch.arange(min(len(one), TRAINED_ON)))]
    for store in stores.values():
        read_files(store)
    for number in range(rounds):
        took = {TRAINER: train_steps(in_memory, one.sources, folder, device=device, steps=steps)}
        for dtype, store in stores.items():
            took[f"{dtype}, files"] = read_files(store)
            for regime, whole_pairs in REGIMES.items():
                for epoch, one_epoch in zip(
                    EPOCHS, read_epochs(store.path, whole_pairs), strict=True
                ):
                    took[f"{dtype}, {regime}, {epoch}"] = one_epoch
        for way, seconds in took.items():
            add(rates, cpu_rates, way, seconds)
            print(f"round {number + 1}, {way}: {rates[way][-1]:,.0f}/s", file=sys.stderr)
    batches = [way for way in rates if "epoch" in way]
    return {
        "pairs": len(one),
        "shards": {dtype: store.num_shards for dtype, store in stores.items()},
        "bytes": {dtype: store.num_bytes for dtype, store in stores.items()},
        "rates": rates,
        "cpu_rates": cpu_rates,
        "found": {"reading to training": min(ratio(rates, way, TRAINER) for way in batches)},
    }


def reading_table(measured: Mapping[str, Any]) -> list[str]:
    """What `measure_reading` found."""
    rates, cpu_rates = measured["rates"], measured["cpu_rates"]
    rows = []
    for way in rates:
        files = f"{way.split(',')[0]}, files"
        rows.append(
            [
                way,
                f"{median(rates[way]):,.0f}",
                f"{ratio(rates, way, TRAINER):,.1f}x",
                f"{ratio(rates, way, files):.1%}" if files in rates else "",
                f"{median(cpu_rates[way]):,.0f}",
            ]
        )
    shards = ", ".join(
        f"{dtype} {measured['bytes'][dtype] / 1e6:,.0f} MB in {count} file(s)"
        for dtype, count in measured["shards"].items()
    )
    head = ["", "pairs/s", "to trainer", "of files", "pairs/CPU s"]
    title = f"{measured['pairs']:,} pairs in batches of {BATCH} ({shards}), "
    return [f"{title}{len(rates[TRAINER])} rounds:", "", *table(head, rows)]
