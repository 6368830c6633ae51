"""delphi's latent cache, written by delphi from dense latents and by us from sparse codes.

    python examples/benchmarks/latent_cache.py           all sizes, ten minutes
    python examples/benchmarks/latent_cache.py --quick   small sizes, under two minutes

The same activations, k of M latents on every token, go both ways into files that must be equal.

without encoding    random latents and activations
with encoding       a crosscoder of random weights with a learned threshold

delphi              what its `LatentCache.run` does with a code: the code is scattered into a dense
                    tensor (as its hook for sparsify does), `cache.add` and firing counts of each
                    batch, then `cache.save` and `save_splits`
dense given         the same without the time to make the dense tensor, and without firing counts
ours                `LatentCacheWriter`, which counts firings too; a batch of delphi's is a part
ours, larger parts  the same with parts of as many rows as `CrosscoderLatentCache` has windows

A batch is 8 rows of 256 tokens: delphi's default of 32 would take 10 GB at 131,072 latents. Every
way has a process of its own with one thread; they take turns, and medians of seconds on the clock
are reported. Ours include waiting for the disk (fsync), which delphi does not. Extra memory is the
peak of all turns above what the process held before; codes and crosscoder are held before.

The script ends with exit code 1 if the files differ or a claim in `CLAIMS` does not hold; claims
are for the full sizes.
"""

from __future__ import annotations

import importlib
import io
import os
from contextlib import redirect_stdout

if __name__ in ("__main__", "__mp_main__"):
    # Before the modules below import torch; the processes of the ways run this file first, too.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with redirect_stdout(io.StringIO()):  # it prints whether there is Triton, in every process
        importlib.import_module("sparsify")

import argparse
import ctypes
import gc
import json
import multiprocessing
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from machine import processor
from safetensors.numpy import load_file
from step_inputs import make_crosscoder, synthetic_pairs
from step_measurements import resident_bytes
from step_report import table
from step_settings import Setting

from delphi_adapters.delphi.crosscoder_cache import WINDOWS_PER_PART
from delphi_adapters.delphi.latent_cache import CacheLayout, LatentCacheWriter
from sparsify_crosscoder.crosscoders import SparseCode

HOOKPOINT = "layers.0"
DELPHI, DENSE_GIVEN = "delphi", "delphi, dense given"
OURS, LARGER_PARTS = "ours", "ours, larger parts"
Encode = Callable[[slice], SparseCode]


@dataclass(frozen=True)
class Size:
    """What is cached: rows of `ctx_len` tokens, k active latents on each token."""

    num_latents: int
    rows: int = 64
    batch_rows: int = 8
    k: int = 200
    ctx_len: int = 256
    widths: tuple[int, ...] = ()
    """Of the crosscoder's sources; without any, the codes are given."""

    @property
    def rows_at_once(self) -> dict[str, int]:
        """The rows that each way is given at a time."""
        if self.widths:  # an encoder's batches would be larger, too, which is another matter
            return dict.fromkeys((DELPHI, OURS), self.batch_rows)
        found = dict.fromkeys((DELPHI, DENSE_GIVEN, OURS), self.batch_rows)
        return found | {LARGER_PARTS: min(WINDOWS_PER_PART, self.rows)}


LATENTS, QUICK_LATENTS, WIDTHS = (8_192, 32_768, 131_072), (4_096, 16_384), (576, 640)
SIZES = [Size(m) for m in LATENTS] + [Size(m, 16, widths=WIDTHS) for m in LATENTS]
QUICK_SIZES = [Size(m, 16, 4) for m in QUICK_LATENTS]
QUICK_SIZES += [Size(QUICK_LATENTS[-1], 8, 4, widths=WIDTHS)]
WARM_UP = Size(64, rows=2, batch_rows=1, k=4, ctx_len=8)
REPEATS, QUICK_REPEATS = 3, 1
CLAIMS = {"times_as_fast": 50, "times_less_memory": 20}
"""What our row at 131,072 latents without encoding must reach."""


# What is cached


def synthetic_codes(size: Size, seed: int = 0) -> Encode:
    """Codes of k distinct random latents on every token, exponential activations."""
    generator = torch.Generator().manual_seed(seed)
    shape, k = (size.rows * size.ctx_len, size.k), size.k
    # Sorted numbers, the i-th of them raised by i, are distinct.
    drawn = torch.randint(0, size.num_latents - k + 1, shape, generator=generator)
    latents = (drawn.sort(1).values + torch.arange(k)).flatten()
    acts = torch.empty(shape).exponential_(generator=generator).flatten()

    def code(tokens: slice) -> SparseCode:
        count, entries = tokens.stop - tokens.start, slice(tokens.start * k, tokens.stop * k)
        rows = torch.arange(count).repeat_interleave(k)
        return SparseCode(acts[entries], latents[entries], rows, (count, size.num_latents))

    return code


def random_crosscoder(size: Size) -> Encode:
    """A crosscoder of random weights, its threshold the one that leaves k latents on average."""
    pairs = synthetic_pairs(size.widths, size.rows * size.ctx_len, seed=0)
    sample = synthetic_pairs(size.widths, 2_048, seed=1)
    setting = Setting(widths=size.widths, num_latents=size.num_latents, k=size.k)
    crosscoder = make_crosscoder(setting, sample)
    crosscoder.update_threshold(crosscoder.find_cuts([crosscoder.normalize(sample)]), decay=0.0)
    crosscoder.eval()
    return lambda tokens: crosscoder.encode_sparse([x[tokens] for x in pairs])


class Stopwatch:
    """Seconds on the clock by stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


def write_delphis(
    encode: Encode, ids: torch.Tensor, size: Size, rows: int, folder: Path, firings: bool = True
) -> dict[str, float]:
    """Cache all rows as delphi does; returns the seconds of each stage."""
    from delphi_adapters.delphi import compat  # noqa: F401

    # isort: split
    from delphi.latents.cache import LatentCache

    watch = Stopwatch()
    cache = LatentCache(SimpleNamespace(), {}, batch_size=rows)  # type: ignore[arg-type]
    cache.width = size.num_latents
    for number, start in enumerate(range(0, size.rows, rows)):
        batch = ids[start : start + rows]
        with watch("encode"):
            code = encode(slice(start * size.ctx_len, start * size.ctx_len + batch.numel()))
        with watch("dense"):
            dense = torch.zeros(code.shape).index_put_((code.rows, code.indices), code.acts)
            dense = dense.view(*batch.shape, -1)
        with watch("add"):
            cache.cache.add(dense, batch, number, HOOKPOINT)
        if firings:
            with watch("firing counts"):
                (dense > 0).sum((0, 1))
        del dense  # before the next one is made
    with watch("save"):
        cache.cache.save()
        cache.save_splits(CacheLayout(HOOKPOINT, size.num_latents).n_splits, folder)
    return watch.seconds


def write_ours(
    encode: Encode, ids: torch.Tensor, size: Size, rows: int, folder: Path
) -> dict[str, float]:
    """Cache all rows as we do, each of them one window; returns the seconds of each stage."""
    watch = Stopwatch()
    with watch("add"):
        layout = CacheLayout(HOOKPOINT, size.num_latents, size.ctx_len)
        writer = LatentCacheWriter(folder, layout)
    for start in range(0, size.rows, rows):
        batch = ids[start : start + rows].flatten()
        first, positions = start * size.ctx_len, torch.arange(len(batch))
        with watch("encode"):
            code = encode(slice(first, first + len(batch)))
        windows, pairs = start + positions // size.ctx_len, positions % size.ctx_len
        with watch("add"):
            writer.add(code, batch, positions, windows, pairs)
    with watch("finish"):
        writer.finish({"model_name": "random"})
    return watch.seconds


WRITERS: dict[str, Callable[..., dict[str, float]]] = {
    DELPHI: write_delphis,
    DENSE_GIVEN: partial(write_delphis, firings=False),
    OURS: write_ours,
    LARGER_PARTS: write_ours,
}


def differences(theirs: Path, ours: Path) -> list[str]:
    """What delphi's files in one folder have that ours do not, or otherwise."""
    names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in (theirs, ours)]
    if not names[0] or names[0] != names[1]:
        return [f"files: {names[0]} and {names[1]}"]
    found = []
    for name in names[0]:
        expected, written = load_file(theirs / name), load_file(ours / name)
        for key in sorted({*expected, *written}):
            a, b = expected.get(key), written.get(key)
            same = a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
            found += [] if same else [f"{key} of {name}"]
    return found


# Processes


def write_anew(way: str, size: Size, encode: Encode, folder: Path) -> dict[str, float]:
    """Cache a size one way into a folder of its own; returns the seconds of each stage."""
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50_000, (size.rows, size.ctx_len), generator=generator)
    with torch.no_grad():
        return WRITERS[way](encode, ids, size, size.rows_at_once[way], folder)


def _serve(way: str, size: Size, folder: Path, connection: Any) -> None:
    torch.set_num_threads(1)
    write_anew(way, WARM_UP, synthetic_codes(WARM_UP), folder)
    encode = random_crosscoder(size) if size.widths else synthetic_codes(size)
    gc.collect()
    with suppress(OSError, AttributeError):  # what is freed but kept would hide what is taken
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux then forgets the peak so far
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident_bytes("VmRSS")
    connection.send(None)
    while connection.recv() == "run":
        connection.send(write_anew(way, size, encode, folder))
    connection.send(resident_bytes("VmHWM") - before)


def measure(size: Size, repeats: int, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The report's rows for one size, and where our files differ from delphi's."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for way in size.rows_at_once:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(way, size, folder / way, theirs))
        process.start()
        theirs.close()
        workers[way] = process, ours

    def ask(way: str, request: str | None) -> Any:
        connection = workers[way][1]
        try:
            if request:
                connection.send(request)
            return connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(f"The process that cached as '{way}' died.") from None

    try:
        for way in workers:
            ask(way, None)
        turns = [{way: ask(way, "run") for way in workers} for _ in range(repeats)]
        peaks = {way: ask(way, "stop") for way in workers}
    finally:
        for process, connection in workers.values():
            connection.close()
            process.join()
    found = [
        f"{way} at {size.num_latents:,} latents: {what}"
        for way in list(workers)[1:]
        for what in differences(folder / DELPHI / HOOKPOINT, folder / way / HOOKPOINT)
    ]
    return rows_of(size, turns, peaks), found


# Report


def rows_of(
    size: Size, turns: Sequence[Mapping[str, Mapping[str, float]]], peaks: Mapping[str, int]
) -> list[dict[str, Any]]:
    """One row for each way; ratios are to delphi, the first of them."""
    rows: list[dict[str, Any]] = []
    for way in peaks:
        given = () if size.widths else ("encode", "dense") if way == DENSE_GIVEN else ("encode",)
        counted = [{s: t for s, t in turn[way].items() if s not in given} for turn in turns]
        seconds = [sum(turn.values()) for turn in counted]
        row = {"way": way, **asdict(size), "rows_at_once": size.rows_at_once[way]}
        row |= {"seconds": seconds, "extra_bytes": peaks[way]}
        row["stages"] = {stage: median(turn[stage] for turn in counted) for stage in counted[0]}
        row["tokens_per_second"] = size.rows * size.ctx_len / median(seconds)
        first = rows[0] if rows else row
        row["times_as_fast"] = row["tokens_per_second"] / first["tokens_per_second"]
        row["times_less_memory"] = first["extra_bytes"] / max(row["extra_bytes"], 1)
        rows.append(row)
    return rows


def judge(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was found for every claim."""
    (ours,) = (
        row
        for row in rows
        if row["way"] == OURS and row["num_latents"] == LATENTS[-1] and not row["widths"]
    )
    return [
        {"claim": key, "at_least": least, "found": ours[key], "holds": ours[key] >= least}
        for key, least in CLAIMS.items()
    ]


def show(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    versions = report["versions"]
    lines = [
        f"{report['processor']}, torch {versions['torch']}, delphi {versions['eai-delphi']}, "
        f"turns: {report['repeats']}; ratios are to delphi."
    ]
    head = ["latents", "", "rows at once", "tokens/s", "times as fast", "extra MB", "times less"]
    for title, encoded in (("Without encoding", False), ("With encoding", True)):
        rows = [row for row in report["rows"] if bool(row["widths"]) == encoded]
        cells = [
            [
                f"{row['num_latents']:,}",
                row["way"],
                f"{row['rows_at_once']}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['times_as_fast']:.2f}x",
                f"{row['extra_bytes'] / 1e6:,.0f}",
                f"{row['times_less_memory']:.1f}x",
                ", ".join(f"{stage} {s:.2f}" for stage, s in row["stages"].items()),
            ]
            for row in rows
        ]
        tokens = rows[0]["rows"] * rows[0]["ctx_len"]
        lines += ["", f"## {title}, {tokens:,} tokens", "", *table([*head, "seconds"], cells)]
    what = "; ".join(report["differences"]) or "none, in any size and way"
    lines += ["", f"Differences between delphi's files and ours: {what}."]
    if report["claims"]:
        cells = [
            [
                claim["claim"].replace("_", " "),
                f"{claim['at_least']}",
                f"{claim['found']:.1f}",
                "pass" if claim["holds"] else "FAIL",
            ]
            for claim in report["claims"]
        ]
        head = [f"ours at {LATENTS[-1]:,} latents, without encoding", "at least", "found", ""]
        lines += ["", *table(head, cells)]
    return "\n".join(lines)


def run(sizes: Sequence[Size], repeats: int) -> dict[str, Any]:
    """Everything that is measured of some sizes, as one report without claims."""
    rows, found = [], []
    for size in sizes:
        print(f"{size} ...", file=sys.stderr, flush=True)
        with TemporaryDirectory() as folder:
            some, different = measure(size, repeats, Path(folder))
        rows, found = rows + some, found + different
    names = ("sparsify-crosscoder", "torch", "numpy", "eai-sparsify", "eai-delphi")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    report = {"processor": processor(), "versions": versions, "repeats": repeats}
    return {**report, "rows": rows, "differences": found, "claims": []}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under two minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    args = parser.parse_args()

    report = run(QUICK_SIZES, QUICK_REPEATS) if args.quick else run(SIZES, REPEATS)
    if not args.quick:
        report["claims"] = judge(report["rows"])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(show(report))
    return int(bool(report["differences"]) or not all(c["holds"] for c in report["claims"]))


if __name__ == "__main__":
    sys.exit(main())
