"""What a store's dtype costs: bytes, error of the activations, FVE of what is trained on them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from demo_training import train
from step_report import table

from sparsify_crosscoder.config import CrosscoderTrainConfig
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.store.dtypes import dtype_names
from sparsify_crosscoder.store.manifest import MANIFEST, new_part
from sparsify_crosscoder.store.normalization import within_norm
from sparsify_crosscoder.store.part_windows import shift_texts, windows_name
from sparsify_crosscoder.store.plan import default_shard_pairs, shard_bounds
from sparsify_crosscoder.store.shard_notes import shard_name
from sparsify_crosscoder.store.shards import write_shard
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream
from sparsify_crosscoder.text.window_numbers import window_numbers
from sparsify_crosscoder.training.metrics import ErrorStatistics, fve

EXACT = "float32"
TEXT_SPLIT_SEED = 0
_ROWS_AT_ONCE = 4096


def encode_again(
    store: ActivationStore, path: Path, dtype: str, *, copies: int = 1, shard_pairs: int = 0
) -> ActivationStore:
    """A store of the same pairs, `copies` times over, in another dtype, as a harvest cuts it.

    Raises ValueError if the dtype cannot hold them.
    """
    texts = 1 + max(store.windows["text_id"])
    windows: Dataset = concatenate_datasets(
        [shift_texts(store.windows, number * texts) for number in range(copies)]
    )
    shard_pairs = shard_pairs or default_shard_pairs(store.d_sources, dtype)
    settings = {"batch_size": 1, "shard_pairs": shard_pairs, "dtype": dtype}
    part = new_part(windows, settings, None, before=[]) | {"complete": True}
    path.mkdir(parents=True)
    windows.save_to_disk(path / windows_name(0))
    num_pairs = window_numbers(windows, "num_pairs")
    ends = np.cumsum(num_pairs)
    for start, stop in shard_bounds(num_pairs, window_numbers(windows, "text_id"), shard_pairs):
        numbers = torch.arange(ends[start] - num_pairs[start], ends[stop - 1]) % len(store)
        file = path / shard_name(len(part["shards"]))
        part["shards"].append(write_shard(file, store.rows(numbers), dtype))
    atomic_write_json(path / MANIFEST, store.manifest | {"parts": [part]})
    return ActivationStore.open(path)


def stored_errors(stored: ActivationStore, exact: ActivationStore) -> dict[str, list[float]]:
    """Squared error over variance of the stored activations, per source.

    `pooled` over the dimensions, `without top 5` of them in variance, and in the `median` and the
    `worst` dimension. Pairs that training leaves out as outliers are left out: the variance of all
    would be mostly theirs.
    """
    statistics = [ErrorStatistics(width) for width in exact.d_sources]
    for numbers in torch.arange(len(exact)).split(_ROWS_AT_ONCE):
        rows = exact.rows(numbers)
        keep = within_norm(rows, CrosscoderTrainConfig.outlier_multiple)
        for one, x, x_stored in zip(statistics, rows, stored.rows(numbers), strict=True):
            one.update(x[keep], x_stored[keep])
    shares = [one.errors / one.deviations.clamp_min(1e-30) for one in statistics]
    return {
        "pooled": [1 - fve([one]) for one in statistics],
        "without top 5": [1 - fve([one], without_top=5) for one in statistics],
        "median": [share.median().item() for share in shares],
        "worst": [share.max().item() for share in shares],
    }


def measure_dtypes(
    exact: ActivationStore,
    folder: Path,
    *,
    steps: int,
    seeds: Sequence[int],
    held_out_pairs: int,
    device: str | torch.device = "cpu",
    **changed: Any,
) -> dict[str, Any]:
    """Bytes, errors and held-out results of every dtype that can hold the pairs of `exact`.

    Runs of one seed have the same weights at the beginning and the same pairs in the same order,
    and all are evaluated on the exact activations of texts that none has seen. `changed` are
    options that are not the demo's.
    """
    stores, too_large = {EXACT: exact}, {}
    for dtype in dtype_names():
        if dtype == EXACT:
            continue
        try:
            stores[dtype] = encode_again(exact, folder / dtype, dtype)
        except ValueError as error:
            too_large[dtype] = str(error)
    train_rows, held_out_rows = exact.split(held_out_pairs, TEXT_SPLIT_SEED)
    results: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in stores}
    for seed in seeds:
        for dtype, store in stores.items():
            results[dtype].append(
                train(
                    StoreStream(store, seed=seed, window_rows=train_rows),
                    StoreStream(exact, seed=0, window_rows=held_out_rows),
                    exact.sources,
                    folder,
                    steps=steps,
                    seed=seed,
                    device=device,
                    **changed,
                )
            )
            print(f"seed {seed}, {dtype}: {results[dtype][-1]['fve']:.4f}", file=sys.stderr)
    kept = ("fve", "fve_per_source", "fve_without_top5_per_source", "mean_l0", "dead_fraction")
    measured = {
        "pairs": len(exact),
        "held_out_pairs": results[EXACT][0]["held_out_pairs"],
        "steps": steps,
        "seeds": list(seeds),
        "too_large": too_large,
        "bytes_per_pair": {d: store.num_bytes / len(store) for d, store in stores.items()},
        "stored_errors": {d: stored_errors(store, exact) for d, store in stores.items()},
        "runs": {d: [{key: run[key] for key in kept} for run in results[d]] for d in results},
    }
    sizes = measured["bytes_per_pair"]
    measured["found"] = {
        "int8's cost in held-out FVE": mean(costs(measured, "int8")["fve"]),
        "int8's bytes to bfloat16's": sizes["int8"] / sizes["bfloat16"],
    }
    return measured


def costs(measured: Mapping[str, Any], dtype: str) -> dict[str, list[float]]:
    """What each seed's run lost to the one on exact activations, in every FVE."""

    def flat(run: Mapping[str, Any]) -> dict[str, float]:
        found = {"fve": run["fve"]}
        for s, (whole, rest) in enumerate(
            zip(run["fve_per_source"], run["fve_without_top5_per_source"], strict=True)
        ):
            found |= {f"model {s}": whole, f"model {s} without top 5": rest}
        return found

    pairs = zip(measured["runs"][EXACT], measured["runs"][dtype], strict=True)
    differences = [(flat(exact), flat(run)) for exact, run in pairs]
    return {key: [exact[key] - run[key] for exact, run in differences] for key in differences[0][0]}


def dtypes_tables(measured: Mapping[str, Any]) -> list[str]:
    """What `measure_dtypes` found."""
    sizes, errors, runs = (measured[key] for key in ("bytes_per_pair", "stored_errors", "runs"))
    kinds = list(errors[EXACT])
    size_rows = [
        [
            dtype,
            f"{sizes[dtype]:,.0f}",
            str(s),
            *(f"{errors[dtype][kind][s]:.1e}" for kind in kinds),
        ]
        for dtype in sizes
        for s in range(len(errors[dtype]["pooled"]))
    ]
    lines = [
        f"{measured['pairs']:,} pairs; squared error of what is stored, over the variance:",
        "",
        *table(["", "bytes a pair", "model", *kinds], size_rows),
        "",
        *(f"{dtype}: {error}\n" for dtype, error in measured["too_large"].items()),
    ]
    cost_rows = []
    for dtype in runs:
        fves = [run["fve"] for run in runs[dtype]]
        of_seeds = costs(measured, dtype)
        cost_rows.append(
            [
                dtype,
                f"{mean(fves):.4f}",
                f"{max(fves) - min(fves):.4f}",
                *(f"{1e4 * mean(values):+.1f}" for values in of_seeds.values()),
                f"{1e4 * min(of_seeds['fve']):+.1f} to {1e4 * max(of_seeds['fve']):+.1f}",
            ]
        )
    of_sources = list(costs(measured, EXACT))[1:]
    head = ["", "held-out FVE", "range of seeds", "cost", *of_sources, "cost, range of seeds"]
    dead = median(run["dead_fraction"] for run in runs[EXACT])
    title = (
        f"{measured['steps']:,} steps, {len(measured['seeds'])} seed(s), evaluated on "
        f"{measured['held_out_pairs']:,} pairs in {EXACT} ({dead:.0%} of the latents dead); costs "
        "in 1e-4:"
    )
    return [*lines, title, "", *table(head, cost_rows)]
