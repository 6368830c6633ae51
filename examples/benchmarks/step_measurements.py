"""Measures a step's time, its stages and its peak memory, and what the machine can do."""

from __future__ import annotations

import gc
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from step_inputs import make_batches, make_crosscoder
from step_settings import Setting
from step_variants import STAGES, Ours, TrainingStep, make_step
from torch import Tensor

from sparsify_crosscoder.training.allocator import keep_freed_memory

TURN = 3
MEMORY_STEPS = 3


# Time


class Clock:
    """The processor's time."""

    def mark(self) -> Any:
        return process_time()

    def milliseconds(self, start: Any, end: Any) -> float:
        return 1e3 * (end - start)


class CudaClock(Clock):
    """The time between events on the GPU."""

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end)


def make_clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()


class Steps(NamedTuple):
    """Milliseconds of a variant's steps, and the page faults of each."""

    ms: list[float]
    page_faults: list[int]


def time_steps(
    steps: Mapping[str, TrainingStep],
    batches: Sequence[Sequence[Tensor]],
    clock: Clock,
    steps_in_a_row: int = TURN,
) -> dict[str, Steps]:
    """Take every variant's steps on the same batches, the first turn left out."""
    names = list(steps)
    found = {name: Steps([], []) for name in names}
    for turn, begin in enumerate(range(0, len(batches), steps_in_a_row)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            # Some steps in a row, so that caches hold what they would hold in training.
            for batch in batches[begin : begin + steps_in_a_row]:
                faults = page_faults()
                start = clock.mark()
                steps[name].step(batch)
                ms = clock.milliseconds(start, clock.mark())
                if turn:
                    found[name].ms.append(ms)
                    found[name].page_faults.append(page_faults() - faults)
    return found


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Stages:
    """Time of a step by stage; a stage inside another is counted as the inner one."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.spans: list[tuple[str, Any, Any]] = []
        self.open: list[str] = []
        self.since: Any = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if "AuxK" in self.open:  # reported as a whole
            yield
            return
        self._charge()
        self.open.append(name)
        try:
            yield
        finally:
            self._charge()
            self.open.pop()

    def _charge(self) -> None:
        now = self.clock.mark()
        if self.open:
            self.spans.append((self.open[-1], self.since, now))
        self.since = now

    def milliseconds(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for name, start, end in self.spans:
            total[name] = total.get(name, 0.0) + self.clock.milliseconds(start, end)
        return total


def time_stages(step: Ours, batches: Sequence[Sequence[Tensor]], clock: Clock) -> dict[str, float]:
    """Median milliseconds of every stage of our step, in the order of `STAGES`."""
    found = []
    for batch in batches:
        stages = Stages(clock)
        with step.watched(stages):
            step.step(batch)
        found.append(stages.milliseconds())
    names = [name for name in STAGES if any(name in one for one in found)]
    return {name: median(one.get(name, 0.0) for one in found) for name in names}


# Memory


def resident_bytes(field: str) -> int:
    """`VmRSS` or `VmHWM`, this process's memory now or at its peak; elsewhere its peak for both."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # ru_maxrss would begin at the peak of the process that started this one.
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.M)
    assert found is not None
    return 1024 * int(found[1])


def run_for_memory(name: str, setting: Setting, device: str) -> None:
    """Take a few steps from new weights on one batch."""
    batch = make_batches(setting, 1, 0, device)[0]
    crosscoder = make_crosscoder(setting, batch, device)
    step = make_step(name, crosscoder, setting)
    del crosscoder
    for _ in range(MEMORY_STEPS):
        step.step(batch)


def _report_peak(name: str, setting: Setting, connection: Any) -> None:
    torch.set_num_threads(1)
    if setting.keep:
        keep_freed_memory()
    # What torch and its libraries load at the first step is not counted.
    run_for_memory(name, replace(setting, num_latents=256, batch=16, k=2), "cpu")
    gc.collect()
    before = resident_bytes("VmRSS")
    run_for_memory(name, setting, "cpu")
    connection.send(resident_bytes("VmHWM") - before)


def peak_bytes(name: str, setting: Setting, device: str, num_runs: int) -> int:
    """Most memory that a variant's steps take, weights and optimiser's state among it.

    On a CPU the median of several processes, as what the allocator can use again varies.
    """
    if device == "cuda":
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run_for_memory(name, setting, device)
        return torch.cuda.max_memory_allocated() - before
    return round(median(_peak_of_process(name, setting) for _ in range(num_runs)))


def _peak_of_process(name: str, setting: Setting) -> int:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(name, setting, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"The process that measured the memory of '{name}' died.") from None
    finally:
        process.join()


def ceilings(setting: Setting, device: str) -> dict[str, float]:
    """Measured FLOP/s of the encoder's matrix product and bytes/s of `a += 3 b`."""
    clock = make_clock(device)

    def seconds(run: Callable[[], Any]) -> float:
        found = []
        for _ in range(6):
            start = clock.mark()
            run()
            found.append(clock.milliseconds(start, clock.mark()) / 1e3)
        return median(found[1:])

    d_in, results = sum(setting.widths), {}
    flops = 2 * setting.batch * setting.num_latents * d_in
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(setting.batch, d_in, device=device, dtype=dtype)
        weight = torch.randn(setting.num_latents, d_in, device=device, dtype=dtype)
        out = torch.empty(setting.batch, setting.num_latents, device=device, dtype=dtype)
        results[f"gemm_{name}_flops"] = flops / seconds(
            lambda x=x, weight=weight, out=out: torch.mm(x, weight.T, out=out)
        )
    a, b = (torch.ones(64 * 1024**2, device=device) for _ in range(2))
    results["memory_bytes"] = 3 * a.nbytes / seconds(lambda: a.add_(b, alpha=3))
    return results
