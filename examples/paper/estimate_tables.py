"""A diff's figures as Markdown tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from public_facts import PAPER_HARVEST_GPU_HOURS, PAPER_REQUESTS, PAPER_TRAINING_GPU_HOURS
from step_report import table


def show(report: dict[str, Any]) -> str:
    """A diff's figures as Markdown."""
    a, b = report["models"]
    return "\n".join(
        [
            f"## {a} with {b}",
            "",
            *_sizes_table(report),
            "",
            *_memory_table(report["training"]),
            "",
            *_step_table(report["training"]["steps"]),
            "",
            *_hours_table(report),
            "",
            *_judge_table(report["judge"]),
            "",
            *_judges_table(report["judge"]["by_batches"]),
        ]
    )


def _sizes_table(report: dict[str, Any]) -> list[str]:
    data, training, cache = report["data"], report["training"], report["cache"]
    partition = " + ".join(f"{size:,}" for size in training["partition"].values())
    rows = [
        ("aligned pairs", f"{data['pairs']:,}"),
        ("tokens of each model, about", f"{data['tokens_per_model'] / 1e6:,.0f} million"),
        ("pairs trained on", f"{data['pairs_trained_on']:,} ({data['epochs']:.2f} times each)"),
        ("store in bfloat16", _bytes(data["store_bytes_bfloat16"])),
        ("store in int8", _bytes(data["store_bytes_int8"])),
        ("both models' weights in bfloat16", _bytes(report["harvest"]["model_bytes"])),
        ("latents: exclusive to each, shared", partition),
        ("crosscoder's parameters", f"{training['parameters'] / 1e9:,.2f} billion"),
        ("its weights on the disk, float32", _bytes(training["checkpoint_bytes"])),
        ("Adam's state on the disk", _bytes(training["optimizer_bytes"])),
        ("latent cache", _bytes(cache["bytes"])),
        ("beside it while it is written", _bytes(cache["bytes_while_writing"])),
    ]
    return table(["size", ""], rows)


def _memory_table(training: dict[str, Any]) -> list[str]:
    memory: dict[str, dict[str, int]] = training["memory"]
    parts = list(next(iter(memory.values())))
    rows = [[part.replace("_", " "), *(_bytes(m[part]) for m in memory.values())] for part in parts]
    shares = [m["peak"] / training["gpu_memory_bytes"] for m in memory.values()]
    rows.append(["peak, of the GPU's memory", *(f"{share:.0%}" for share in shares)])
    return table(["memory of training, float32", *memory], rows)


def _step_table(steps: dict[str, dict[str, float]]) -> list[str]:
    rows = [
        [
            kind,
            f"{one['floor_ms']:,.1f}",
            f"{one['least_hours']:.1f}",
            f"{one['reached_on_cpu']:.0%}",
            f"{one['ms']:,.0f}",
            f"{one['hours']:.1f}",
            f"{one['bytes_per_second'] / 1e9:.2f}",
        ]
        for kind, one in steps.items()
    ]
    head = ["training step", "floor ms", "hours at it", "reached on our CPU", "ms", "hours"]
    return table([*head, "GB/s read, bfloat16"], rows)


def _hours_table(report: dict[str, Any]) -> list[str]:
    low, high = (one["hours"] for one in report["training"]["steps"].values())
    runs, stitch, steer = report["crosscoders"], report["stitch"], report["exclusivity"]
    cache = report["cache"]
    times = f"{runs} crosscoders, " if runs > 1 else ""
    rows = [
        [
            "harvest",
            f"{report['harvest']['flops']:.2g} FLOP",
            _hours(report["harvest"]["hours"]),
            _hours(PAPER_HARVEST_GPU_HOURS),
        ],
        [
            "train",
            f"{times}none to half dead",
            f"{_hours(runs * low)} to {_hours(runs * high)}",
            f"{_hours(runs * PAPER_TRAINING_GPU_HOURS)}",
        ],
        [
            "cache",
            f"{cache['flops']:.2g} FLOP, and {cache['core_hours']:.1f} hours of one core",
            _hours(cache["hours"]),
            "",
        ],
        ["stitch", f"{stitch['flops']:.2g} FLOP", _hours(stitch["hours"]), ""],
        [
            "exclusivity",
            f"{steer['features']:,} directions, {steer['answers']:,} answers, "
            f"{steer['tokens'] / 1e6:,.1f} million tokens",
            _hours(steer["hours"]),
            "",
        ],
        *(
            [
                f"rubric {name}",
                f"{one['answers']:,} answers, {one['tokens'] / 1e6:,.1f} million tokens",
                _hours(one["hours"]),
                "",
            ]
            for name, one in report["rubrics"].items()
        ),
    ]
    return table(["stage", "work", "GPU-hours, computed", "the paper's"], rows)


def _judge_table(judge: dict[str, Any]) -> list[str]:
    stages = judge["stages"]
    rows = [
        [
            stage["name"],
            f"{stage['requests']:,}",
            f"{stage['prompt_tokens']:,.0f}",
            f"{stage['answer_tokens']:,}",
            f"{stage['dollars']:,.0f}",
            f"{stage['dollars_by_batches']:,.0f}",
        ]
        for stage in stages
    ]
    rows.append(
        [
            "all",
            f"{sum(stage['requests'] for stage in stages):,}",
            "",
            "",
            f"{sum(stage['dollars'] for stage in stages):,.0f}",
            f"{sum(stage['dollars_by_batches'] for stage in stages):,.0f}",
        ]
    )
    rows.append(["the paper's, about (Appendix A)", f"{PAPER_REQUESTS:,}", *[""] * 4])
    name = f"{judge['name']}, latents: {judge['latents']}"
    return table([name, "requests", "tokens asked", "answered", "$", "$ by Batches"], rows)


def _judges_table(by_batches: dict[str, dict[str, float]]) -> list[str]:
    """One row for judges of the same price."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, costs in by_batches.items():
        names.setdefault(tuple(costs.values()), []).append(name.removeprefix("claude-"))
    rows = [[", ".join(some), *(f"{cost:,.0f}" for cost in costs)] for costs, some in names.items()]
    choices = next(iter(by_batches.values()))
    return table(["$ by Batches", *(f"latents: {choice}" for choice in choices)], rows)


def _bytes(count: float) -> str:
    for unit in ("TB", "GB", "MB"):
        size = count / {"TB": 1e12, "GB": 1e9, "MB": 1e6}[unit]
        if size >= 1:
            break
    return f"{size:,.3g} {unit}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 else "less than 0.1"
