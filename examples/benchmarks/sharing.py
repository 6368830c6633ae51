"""What training loses when another process takes a core, and what not spinning costs alone.

    python examples/benchmarks/sharing.py           two minutes on two cores
    python examples/benchmarks/sharing.py --quick   one, with fewer steps

The demo's DFC trains on random pairs of the demo's widths, with a thread for each core, in a
process for each way in which OpenMP's threads can wait for one another:

torch's own       a thread that waits spins, so one that waits for a thread without a core keeps
                  a core
as our commands   `OPENMP_DEFAULTS`: it sleeps

Both are measured with the machine to themselves and beside a process that keeps one core busy, in
turns of a few steps; a number is the median over all turns' steps. With T threads and a busy
process the scheduler can leave a training T / (T + 1) of the cores, so a step may take (T + 1) / T
as long.

The script ends with exit code 1 if a claim does not hold: beside a busy process a step takes at
most `AT_MOST` times as long as in proportion, and alone at most that of torch's own way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from machine import processor

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import OPENMP_DEFAULTS

TORCHS, OURS = "torch's own", "as our commands"
WAYS: dict[str, dict[str, str]] = {TORCHS: {}, OURS: OPENMP_DEFAULTS}
ALONE, BESIDE = "alone", "beside a busy process"
AT_MOST = {
    "as our commands, beside a busy process, to its proportion": 1.5,
    "as our commands to torch's own, alone": 1.1,
}
WIDTHS = (576, 640)


def child() -> None:
    """Train; for each line of the standard input so many steps, and their times in a line."""
    import torch
    from demo_training import train

    from sparsify_crosscoder.store.tensor_stream import TensorStream
    from sparsify_crosscoder.training.allocator import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    sources = [{"name": str(w), "hookpoint": "layers.0", "width": w} for w in WIDTHS]
    pairs = TensorStream([torch.randn(4096, width) for width in WIDTHS], seed=0)
    asked = iter(sys.stdin)
    left, begun, took = 5, time.perf_counter(), []  # five to warm up

    def after_step() -> None:
        nonlocal left, begun
        took.append(time.perf_counter() - begun)
        left -= 1
        if not left:
            print(*took, flush=True)
            took.clear()
            left = int(next(asked))
        begun = time.perf_counter()

    with TemporaryDirectory() as folder:
        try:
            train(pairs, None, sources, Path(folder), steps=10**6, after_step=after_step)
        except (StopIteration, RuntimeError):
            return


@contextmanager
def training(environment: Mapping[str, str], threads: int) -> Iterator[subprocess.Popen[str]]:
    """A child that has warmed up."""
    names = {*OPENMP_DEFAULTS, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    with subprocess.Popen(
        [sys.executable, __file__, "--child"],
        env={**inherited, "OMP_NUM_THREADS": str(threads), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("The training that is to be measured failed.")
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process computes meanwhile."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def measure(threads: int, turns: int, steps: int) -> dict[str, dict[str, float]]:
    """Seconds of a step, by way and by what runs beside."""
    took: dict[str, dict[str, list[float]]] = {way: {ALONE: [], BESIDE: []} for way in WAYS}
    with ExitStack() as stack:
        children = {
            way: stack.enter_context(training(environment, threads))
            for way, environment in WAYS.items()
        }
        for turn in range(turns):
            for beside in (ALONE, BESIDE):
                with ExitStack() as other:
                    if beside == BESIDE:
                        other.enter_context(busy_core())
                    for way, process in children.items():
                        assert process.stdin is not None and process.stdout is not None
                        print(steps, file=process.stdin, flush=True)
                        seconds = [float(one) for one in process.stdout.readline().split()]
                        took[way][beside] += seconds
                        shown = f"{1e3 * median(seconds):,.0f} ms a step"
                        print(f"turn {turn + 1}, {way}, {beside}: {shown}", file=sys.stderr)
    return {way: {b: median(found) for b, found in of.items()} for way, of in took.items()}


def judge(seconds: Mapping[str, Mapping[str, float]], threads: int) -> list[dict[str, Any]]:
    """What was found for every claim."""
    ours, torchs = seconds[OURS], seconds[TORCHS]
    proportion = (threads + 1) / threads
    found = (ours[BESIDE] / ours[ALONE] / proportion, ours[ALONE] / torchs[ALONE])
    return [
        {"claim": claim, "at most": most, "found": value, "holds": value <= most}
        for (claim, most), value in zip(AT_MOST.items(), found, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child()
        return 0
    seconds = measure(args.threads, *((2, 8) if args.quick else (4, 20)))
    claims = judge(seconds, args.threads)
    report = {"processor": processor(), "threads": args.threads}
    report |= {"seconds": seconds, "claims": claims}
    if args.json is not None:
        atomic_write_json(args.json, report)
    print(f"{report['processor']}, {args.threads} thread(s); ms a step:\n")
    for way, found in seconds.items():
        times = found[BESIDE] / found[ALONE]
        print(f"{way:<16} alone {1e3 * found[ALONE]:6,.0f}, beside a busy process", end=" ")
        print(f"{1e3 * found[BESIDE]:6,.0f} ({times:.2f}x)")
    for claim in claims:
        holds = "pass" if claim["holds"] else "FAIL"
        print(f"{claim['claim']}: {claim['found']:.2f}, at most {claim['at most']} {holds}")
    return int(not all(claim["holds"] for claim in claims))


if __name__ == "__main__":
    sys.exit(main())
