"""The benchmark's report as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from step_settings import SCALING
from step_variants import OURS, STAGES, VARIANTS

COLOURS = {"ours fp32": "#2f6db3", "ours bf16": "#d9822b"}
LABEL_STYLE: dict[str, Any] = {"fontsize": 9, "color": "#57606a"}


def show(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    versions, machine = report["versions"], report["machine"]
    lines = [
        f"{machine.get('gpu', machine['processor'])}, torch {versions['torch']}, "
        f"medians of {report['num_steps']} steps; ratios are times faster than."
    ]
    for name, settings in report["tables"].items():
        if name in SCALING:
            lines += ["", *_scaling_table(name, [report["settings"][one] for one in settings])]
            continue
        for one in settings:
            result = report["settings"][one]
            lines += ["", one, "", *_variants_table(result)]
            if "stages" in result:
                lines += ["", *_stages_table(result)]
            if "expected_bytes" in result:
                lines += ["", *_memory_table(result)]
    if report["claims"]:
        rows = [
            [
                c["claim"],
                f"{c['at_least']:g}",
                f"{c['found']:.2f}",
                "pass" if c["holds"] else "FAIL",
            ]
            for c in report["claims"]
        ]
        lines += ["", *table(["claim", "at least", "found", ""], rows)]
    return "\n".join(lines)


def _variants_table(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in result["variants"].items():
        low, high = one["quartiles_ms"]
        rows.append(
            [
                name,
                f"{one['median_ms']:,.1f}",
                f"{low:,.0f}-{high:,.0f}",
                _times(one.get("faster_than_dense")),
                _times(one.get("faster_than_sparsify")),
                _megabytes(one.get("peak_bytes")),
                f"{one['page_faults'] / 1e3:,.1f}" if "page_faults" in one else "",
                _percent(one.get("gemm_share")),
                _percent(one.get("bandwidth_share")),
            ]
        )
    head = ["", "ms", "quartiles", "dense", "sparsify", "peak MB", "page faults, thousands"]
    return table([*head, "of GEMM", "of bandwidth"], rows)


def _stages_table(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for variant, stages in result["stages"].items():
        for stage, one in stages.items():
            counted = "gflop" in one
            rows.append(
                [
                    variant,
                    stage,
                    f"{one['median_ms']:,.1f}",
                    f"{one['gflop']:,.1f}" if counted else "",
                    f"{one['gbyte']:,.2f}" if counted else "",
                    f"{one['floor_ms']:,.1f}" if counted else "",
                ]
            )
        total = result["variants"][variant]
        rows.append(
            [
                variant,
                "all",
                f"{sum(one['median_ms'] for one in stages.values()):,.1f}",
                f"{total['gflop']:,.1f}",
                f"{total['gbyte']:,.2f}",
                f"{total['floor_ms']:,.1f}",
            ]
        )
    limits = result["ceilings"]
    return [
        f"Ceilings: {limits['gemm_fp32_flops'] / 1e9:,.0f} GFLOP/s in fp32, "
        f"{limits['gemm_bf16_flops'] / 1e9:,.0f} in bf16, {limits['memory_bytes'] / 1e9:,.1f} GB/s",
        "",
        *table(["", "stage", "ms", "GFLOP", "GB", "floor ms"], rows),
    ]


def _memory_table(result: Mapping[str, Any]) -> list[str]:
    expected = result["expected_bytes"]
    measured = [result["variants"][name]["peak_bytes"] for name in expected]
    rows = [
        [part, *(_megabytes(parts[part]) for parts in expected.values())]
        for part in next(iter(expected.values()))
    ]
    ratios = [parts["peak"] / peak for parts, peak in zip(expected.values(), measured, strict=True)]
    rows.append(["measured", *map(_megabytes, measured)])
    rows.append(["expected of measured", *(f"{100 * ratio:.0f}%" for ratio in ratios)])
    return table(["expected MB", *expected], rows)


def _scaling_table(name: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    field = {"latents": "num_latents"}.get(name, name)
    rows = []
    for result in results:
        variants = result["variants"]
        row = [f"{result['setting'][field]:,}"]
        row += [f"{variants[one]['median_ms']:,.1f}" for one in VARIANTS]
        for one in OURS:
            row.append(_times(variants[one]["faster_than_dense"]))
            row.append(_times(variants[one]["faster_than_sparsify"]))
        rows.append(row)
    head = [name, *(f"{one} ms" for one in VARIANTS)]
    head += [f"{one} / {against}" for one in ("fp32", "bf16") for against in ("dense", "sparsify")]
    return table(head, rows)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [written[0], rule, *written[1:]]


def plot(report: Mapping[str, Any], png: Path) -> None:
    """Draw how much faster our step is against M, and where its time goes, into one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(14, 4.8), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.045, right=0.91, bottom=0.13, top=0.88, wspace=0.24)

    results = [report["settings"][one] for one in report["tables"].get("latents", ())]
    latents = [result["setting"]["num_latents"] for result in results]
    for name, colour in COLOURS.items():
        for against, line in (("dense", "-"), ("sparsify", "--")):
            ratios = [r["variants"][name][f"faster_than_{against}"] for r in results]
            label = f"{name} against {against}"
            left.plot(latents, ratios, line, marker="o", color=colour, linewidth=2, label=label)
    left.set_title("Times faster, by latents", loc="left", fontsize=12)
    left.set_ylim(bottom=0)
    if results:
        left.set_xscale("log", base=2)
        left.set_xticks(latents, [f"{m:,}" for m in latents])
        left.legend(frameon=False, fontsize=9)

    bars = [
        (f"{title}\n{name}", report["settings"][setting]["stages"][name])
        for table, title in (("auxk_off", "AuxK off"), ("auxk_on", "AuxK on"), ("narrow", "narrow"))
        for setting in report["tables"].get(table, ())
        for name in OURS
    ]
    for row, (_, found) in enumerate(bars):
        start = 0.0
        for stage, one in found.items():
            right.barh(-row, one["median_ms"], left=start, color=STAGES[stage])
            start += one["median_ms"]
    right.set_title("Milliseconds of a step, by stage", loc="left", fontsize=12)
    right.set_yticks([-row for row in range(len(bars))], [title for title, _ in bars])
    drawn = [stage for stage in STAGES if any(stage in found for _, found in bars)]
    patches = [Patch(color=STAGES[stage], label=stage) for stage in drawn]
    right.legend(
        handles=patches, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    for axes in (left, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(colors=LABEL_STYLE["color"], labelsize=9)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)
