"""What a store of a given size takes: bytes per dtype, and hours of one core at measured rates.

    python examples/benchmarks/store_plan.py            the paper's 100 million pairs of 4096 + 4096
    python examples/benchmarks/store_plan.py --quick    the same from fewer pairs, half a minute

One shard of random bfloat16 activations is written in each dtype, checksums included, and read
again, shuffled and decoded, from the page cache; dtypes take turns, rates are medians over the
rounds of the processor's time on one thread. Models are not run: see harvest.py for those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from machine import processor
from step_report import table

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.store.dtypes import get_dtype
from sparsify_crosscoder.store.order import BLOCK_PAIRS
from sparsify_crosscoder.store.plan import default_shard_pairs
from sparsify_crosscoder.store.shards import Shard, bytes_per_pair, num_checked_blocks, write_shard

DTYPES = ("float32", "bfloat16", "int8")
PAIRS, ROUNDS = 8192, 5
QUICK_PAIRS, QUICK_ROUNDS = 2048, 2
READ_AT_ONCE = 1024


def measure(widths: Sequence[int], num_pairs: int, rounds: int) -> dict[str, dict[str, Any]]:
    """For each dtype, bytes of a pair and the pairs per second that one core writes and reads."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(num_pairs, width, generator=generator).bfloat16() for width in widths]
    blocks = torch.randperm(num_pairs // BLOCK_PAIRS, generator=generator) * BLOCK_PAIRS
    order = (blocks[:, None] + torch.arange(BLOCK_PAIRS)).flatten()
    times: dict[str, list[tuple[float, float]]] = {dtype: [] for dtype in DTYPES}
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for dtype in DTYPES:
                file = Path(folder) / f"{dtype}.safetensors"
                begun = process_time()
                write_shard(file, pairs, dtype)
                written = process_time()
                shard = Shard(file, get_dtype(dtype), np.zeros(num_checked_blocks(num_pairs), bool))
                for rows in order.split(READ_AT_ONCE):
                    shard.read(rows).decode()
                times[dtype].append((written - begun, process_time() - written))
    return {
        dtype: {
            "bytes_per_pair": bytes_per_pair(widths, dtype),
            "shard_pairs": default_shard_pairs(widths, dtype),
            "written_per_second": num_pairs / median(write for write, _ in found),
            "read_per_second": num_pairs / median(read for _, read in found),
        }
        for dtype, found in times.items()
    }


def show(report: dict[str, Any]) -> str:
    """The report as a table."""
    pairs = report["pairs"]
    rows = []
    for dtype, found in report["dtypes"].items():
        rows.append(
            [
                dtype,
                f"{found['bytes_per_pair']:,.0f}",
                f"{pairs * found['bytes_per_pair'] / 1e12:,.2f}",
                f"{-(-pairs // found['shard_pairs']):,}",
                f"{found['written_per_second']:,.0f}",
                f"{pairs / found['written_per_second'] / 3600:,.1f}",
                f"{found['read_per_second']:,.0f}",
                f"{pairs / found['read_per_second'] / 3600:,.1f}",
            ]
        )
    head = ["", "bytes a pair", "TB", "shards", "written/s", "hours", "read/s", "hours"]
    widths = " + ".join(map(str, report["widths"]))
    title = f"{pairs:,} pairs of {widths}, one core of {report['processor']}:"
    return "\n".join([title, "", *table(head, rows)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 4096])
    parser.add_argument("--pairs", type=int, default=100_000_000, help="of the store planned")
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    args = parser.parse_args()
    if min(args.widths) < 1 or args.pairs < 1:
        parser.error("--widths and --pairs must be at least 1.")
    torch.set_num_threads(1)
    measured = (QUICK_PAIRS, QUICK_ROUNDS) if args.quick else (PAIRS, ROUNDS)
    report = {
        "processor": processor(),
        "widths": args.widths,
        "pairs": args.pairs,
        "dtypes": measure(args.widths, *measured),
    }
    if args.json:
        atomic_write_json(args.json, report)
    print(show(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
