"""What one training step of a crosscoder costs, beside the same step written in other ways.

    python examples/benchmarks/training_step.py           all sizes, 40 minutes
    python examples/benchmarks/training_step.py --quick   small sizes, under two minutes

All ways run in turn in one process on one thread, on the same batches and from the same weights,
which have seen some training. On a CPU the time is that of the processor, on a GPU that between
CUDA events. The script ends with exit code 1 if a claim in `CLAIMS` does not hold; claims are for
the full sizes on a CPU. Peak memory is that of a process of its own for each way.

dense          dense [N, M] codes from one flat top-k, dense decoding, autograd, torch's own Adam
index_add      sparse codes as sparsify has them: `embedding_bag`, and for the encoder's gradient a
               row for each entry, added up by index_add
ours fp32      `Crosscoder`, clip and fused Adam
ours bf16      the same with its latents screened in bfloat16
sparsify       `sparsify.SparseCoder` on the concatenated sources: TopK of each row, no clip, and in
               its auxiliary loss half the joint width of latents instead of half the mean width

The first four do the same: norm-weighted BatchTopK, AuxK, gradient clip, Adam, and a counter of
dead latents.
"""

from __future__ import annotations

import importlib
import io
import os
from contextlib import redirect_stdout

if __name__ in ("__main__", "__mp_main__"):
    # One thread, so that the processor's time is comparable. It has to be set before the modules
    # below import torch; a process that measures memory runs this file first, as `__mp_main__`.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with redirect_stdout(io.StringIO()):  # it prints whether there is Triton, in every process
        importlib.import_module("sparsify")

import argparse
import gc
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from machine import processor
from step_estimates import Work, count_work, dense_flops, expected_bytes, shares
from step_inputs import Trained, make_batches, make_crosscoder
from step_measurements import (
    TURN,
    ceilings,
    make_clock,
    peak_bytes,
    time_stages,
    time_steps,
)
from step_report import plot, show
from step_settings import (
    AUXK_OFF,
    AUXK_ON,
    LATENTS,
    NARROW,
    PAPER,
    QUICK_SIZES,
    SCALING,
    SIZES,
    Setting,
)
from step_variants import OURS, VARIANTS, Ours, fused_encoder_step, make_step

from sparsify_crosscoder.training.allocator import keep_freed_memory

WARMUP_STEPS = 40
STEPS, QUICK_STEPS = 12, 3
STAGE_STEPS, QUICK_STAGE_STEPS = 5, 2
MEMORY_RUNS, QUICK_MEMORY_RUNS = 3, 1


class Claim(NamedTuple):
    """What the project says of its step: `found` of a report is at least `at_least`."""

    text: str
    settings: tuple[Setting, ...]
    found: Callable[[Mapping[str, Any]], float]
    at_least: float


def _ratio(setting: Setting, variant: str, against: str) -> Callable[[Mapping[str, Any]], float]:
    def found(report: Mapping[str, Any]) -> float:
        variants = report["settings"][str(setting)]["variants"]
        return variants[against]["median_ms"] / variants[variant]["median_ms"]

    return found


def _growth(variant: str) -> Callable[[Mapping[str, Any]], float]:
    def found(report: Mapping[str, Any]) -> float:
        first, last = (_ratio(LATENTS[i], variant, "dense")(report) for i in (0, -1))
        return last / first

    return found


def _memory(setting: Setting, variant: str) -> Callable[[Mapping[str, Any]], float]:
    def found(report: Mapping[str, Any]) -> float:
        variants = report["settings"][str(setting)]["variants"]
        return variants["dense"]["peak_bytes"] / variants[variant]["peak_bytes"]

    return found


def _worst_estimate(report: Mapping[str, Any]) -> float:
    """The estimate of memory that is furthest off, as a share of what was measured, at most 1."""
    shares = []
    for result in report["settings"].values():
        for name, expected in result.get("expected_bytes", {}).items():
            share = expected["peak"] / result["variants"][name]["peak_bytes"]
            shares.append(min(share, 1 / share))
    return min(shares)


CLAIMS = (
    Claim("fp32 against dense", (AUXK_OFF,), _ratio(AUXK_OFF, "ours fp32", "dense"), 4.5),
    Claim("bf16 against dense", (AUXK_OFF,), _ratio(AUXK_OFF, "ours bf16", "dense"), 7),
    Claim("bf16 against sparsify", (AUXK_OFF,), _ratio(AUXK_OFF, "ours bf16", "sparsify"), 2.5),
    Claim("bf16 against dense, AuxK", (AUXK_ON,), _ratio(AUXK_ON, "ours bf16", "dense"), 6),
    Claim("bf16 against dense, narrow", (NARROW,), _ratio(NARROW, "ours bf16", "dense"), 10),
    Claim("dense's peak memory against fp32", (AUXK_OFF,), _memory(AUXK_OFF, "ours fp32"), 1),
    Claim("dense's peak memory against bf16", (AUXK_OFF,), _memory(AUXK_OFF, "ours bf16"), 1),
    Claim("the same with AuxK", (AUXK_ON,), _memory(AUXK_ON, "ours bf16"), 1),
    Claim("ratio of fp32 at M=16,384 to that at 2,048", LATENTS, _growth("ours fp32"), 0.9),
    Claim("ratio of bf16 at M=16,384 to that at 2,048", LATENTS, _growth("ours bf16"), 0.9),
    Claim("estimate of memory against measured", (AUXK_OFF, AUXK_ON, NARROW), _worst_estimate, 0.9),
)


def summarise(times: Sequence[float]) -> dict[str, Any]:
    low, _, high = quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"median_ms": median(times), "quartiles_ms": [low, high], "ms": list(times)}


def benchmark(
    setting: Setting,
    trained: Trained,
    device: str,
    *,
    num_steps: int,
    turn: int,
    stage_steps: int,
    memory: Sequence[str],
    memory_runs: int,
) -> dict[str, Any]:
    """Time and stages of all variants at one setting, and the memory of those in `memory`."""
    if setting.keep:
        keep_freed_memory()
    result: dict[str, Any] = {"setting": asdict(setting), "variants": {}}
    peaks: dict[str, int] = {}
    if memory:
        peaks = {name: peak_bytes(name, setting, device, memory_runs) for name in memory}
    clock = make_clock(device)
    steps = {name: make_step(name, trained.crosscoder(setting), setting) for name in VARIANTS}
    ours = {name: step for name, step in steps.items() if isinstance(step, Ours)}
    if device == "cuda":
        name = "dense autocast"
        steps[name] = make_step(name, trained.crosscoder(setting), setting)
    batches = make_batches(setting, turn + num_steps + stage_steps, 4, device)
    times = time_steps(steps, batches[: turn + num_steps], clock, turn)
    for name, found in times.items():
        result["variants"][name] = summarise(found.ms)
        if device == "cpu":
            result["variants"][name]["page_faults"] = median(found.page_faults)
        if name in peaks:
            result["variants"][name]["peak_bytes"] = peaks[name]
    for one in result["variants"].values():
        for against in ("dense", "sparsify"):
            ratio = result["variants"][against]["median_ms"] / one["median_ms"]
            one[f"faster_than_{against}"] = ratio
    if memory and not setting.keep:
        result["expected_bytes"] = {
            name: expected_bytes(
                setting,
                step.screen_dtype,
                sum(w.numel() for w in step.crosscoder.encoder.weights),
            )
            for name, step in ours.items()
        }
    code = ours["ours fp32"].code
    assert code is not None
    entries = code.counts.float()
    result["active_latents_per_pair"] = {
        "mean": entries.mean().item(),
        **{f"percentile_{p}": entries.quantile(p / 100).item() for p in (1, 50, 99)},
        "max": entries.max().item(),
    }
    if stage_steps:
        result["ceilings"] = ceilings(setting, device)
        result["stages"] = {}
        limits = result["ceilings"]
        for name, step in ours.items():
            found = time_stages(step, batches[-stage_steps:], clock)
            work = count_work(step.crosscoder, setting, step.screen_dtype)
            result["stages"][name] = {
                stage: {"median_ms": ms, **(shares([work[stage]], ms, limits) if ms else {})}
                if stage in work
                else {"median_ms": ms}
                for stage, ms in found.items()
            }
            one = result["variants"][name]
            one |= shares(list(work.values()), one["median_ms"], limits)
        # Bytes are not counted for the dense step, whose products take most of its time.
        one = result["variants"]["dense"]
        one |= shares([Work(dense_flops(setting), 0)], one["median_ms"], limits)
    return result


def benchmark_paper(device: str, num_steps: int) -> dict[str, Any]:
    """The paper's size on a GPU: one variant at a time, since two may not fit."""
    clock = make_clock(device)
    result: dict[str, Any] = {"setting": asdict(PAPER), "variants": {}}
    batches = make_batches(PAPER, TURN + num_steps, 4, device)
    for name in (*OURS, "dense", "dense autocast", "sparsify's encoder alone"):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            crosscoder = make_crosscoder(PAPER, batches[0], device)
            step = fused_encoder_step(crosscoder) if "alone" in name else None
            if step is None:
                step = make_step(name, crosscoder, PAPER).step
            del crosscoder
            found = []
            for batch in batches:
                start = clock.mark()
                step(batch)
                found.append(clock.milliseconds(start, clock.mark()))
        except torch.OutOfMemoryError:
            print(f"{name} does not fit into this GPU at the paper's size.", file=sys.stderr)
            continue
        finally:
            step = None
        result["variants"][name] = {
            **summarise(found[TURN:]),
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }
    return result


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as one report."""
    chosen: dict[str, tuple[Setting, ...]] = dict(QUICK_SIZES if args.quick else SIZES)
    if args.device == "cuda":
        chosen.pop("kept", None)
    if args.sizes:
        known = {name: chosen[name] for name in args.sizes if name in chosen}
        own = tuple(Setting.parse(name) for name in args.sizes if name not in SIZES)
        chosen = known | ({"own": own} if own else {})
    num_steps = QUICK_STEPS if args.quick else STEPS
    stage_steps = QUICK_STAGE_STEPS if args.quick else STAGE_STEPS
    if args.in_a_row > TURN:
        num_steps, stage_steps = 3 * args.in_a_row, 0
    trained = Trained(args.device, WARMUP_STEPS // 4 if args.quick else WARMUP_STEPS)
    report: dict[str, Any] = {
        "quick": args.quick,
        "num_steps": num_steps,
        "in_a_row": args.in_a_row,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sparsify-crosscoder", "torch", "eai-sparsify")},
        },
        "machine": {"processor": processor(), "system": platform.system(), "device": args.device},
        "tables": {name: [str(one) for one in sizes] for name, sizes in chosen.items()},
        "settings": {},
        "claims": [],
    }
    if args.device == "cuda":
        report["machine"]["gpu"] = torch.cuda.get_device_name()
    paper = chosen.pop("paper", ())
    detailed = {one for name, sizes in chosen.items() if name not in SCALING for one in sizes}
    measured = {
        one for name, sizes in chosen.items() if name not in (*SCALING, "dfc") for one in sizes
    }
    memory = list(VARIANTS)
    if args.quick:  # each takes a process of its own
        measured &= set(QUICK_SIZES["auxk_off"])
        memory = ["dense", *OURS]
    if args.in_a_row > TURN:
        measured = set()
    every = dict.fromkeys(one for sizes in chosen.values() for one in sizes)
    # A process that keeps its memory cannot be made to give it back again.
    for setting in sorted(every, key=lambda setting: setting.keep):
        print(f"{setting} ...", file=sys.stderr, flush=True)
        report["settings"][str(setting)] = benchmark(
            setting,
            trained,
            args.device,
            num_steps=num_steps,
            turn=args.in_a_row,
            stage_steps=stage_steps if setting in detailed else 0,
            memory=memory if setting in measured else (),
            memory_runs=QUICK_MEMORY_RUNS if args.quick else MEMORY_RUNS,
        )
    if paper and args.device == "cuda":
        print(f"{PAPER} ...", file=sys.stderr, flush=True)
        report["settings"][str(PAPER)] = benchmark_paper(args.device, num_steps)
    elif paper:
        del report["tables"]["paper"]
        print("The paper's size needs --device cuda; it is left out.", file=sys.stderr)
    if not args.quick and args.device == "cpu":
        report["claims"] = judge(report)
    return report


def judge(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was found for every claim whose settings were measured."""
    rows = []
    for claim in CLAIMS:
        if all(str(setting) in report["settings"] for setting in claim.settings):
            found = claim.found(report)
            row = {"claim": claim.text, "at_least": claim.at_least, "found": found}
            rows.append({**row, "holds": found >= claim.at_least})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under two minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the figures there, a PNG")
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="NAME",
        help=f"only these: {', '.join(SIZES)},\nor of the form 576+640/16384/1024/64[/auxk][/dfc]",
    )
    parser.add_argument(
        "--in_a_row",
        type=int,
        default=TURN,
        metavar="N",
        help=f"steps that a way takes in its turn ({TURN}); of more, only the time is measured",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: this machine has no GPU that torch can use.")
        torch.set_float32_matmul_precision("high")
    for name in args.sizes or ():
        if name not in SIZES:
            try:
                Setting.parse(name)
            except ValueError as error:
                parser.error(str(error))

    report = run(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(show(report))
    if args.plot:
        plot(report, args.plot)
    return 0 if all(claim["holds"] for claim in report["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
