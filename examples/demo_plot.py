"""One picture of a finished run: how well it reconstructs, what died, and whose the latents are.

Run as `python examples/demo_plot.py RUN_FOLDER [PNG]`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOW, HIGH = 0.2, 0.8
"""Relative decoder norms below and above which a latent counts as one model's own."""

SOURCE_COLOURS = ("#2f6db3", "#d9822b", "#3f9b6c", "#a3559e", "#8c6d46", "#5b6770")
ALL_COLOUR = "#30363d"
SHARED_COLOUR = "#aab2bb"
LABEL_STYLE: dict[str, Any] = {"fontsize": 9, "color": "#57606a"}


def plot_run(run_folder: Path, png: Path) -> None:
    """Draw a run folder's `metrics.jsonl` and `summary.json` into one PNG of three panels.

    The panels are the fraction of variance explained (per source) and the dead latents (all, and
    each source's exclusive block where there is one) over the aligned pairs seen, and the number of
    latents per relative decoder norm, in log counts.

    Raises FileNotFoundError when the folder lacks one of the two files and ValueError when the
    metrics are empty or a line of them is not JSON.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sparsify_crosscoder.harvest.model_identity import source_names

    run_folder, png = Path(run_folder), Path(png)
    metrics = read_metrics(run_folder / "metrics.jsonl")
    summary = json.loads(_existing(run_folder / "summary.json").read_text(encoding="utf-8"))
    names = [_cut(name) for name in source_names(summary["sources"])]

    figure = Figure(figsize=(16, 5.6), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.12, top=0.79, wspace=0.19)
    _plot_fve(panels[0], metrics, summary, names)
    _plot_dead(panels[1], metrics, summary, names)
    _plot_relative_decoder_norm(panels[2], summary, names)
    figure.text(
        0.045, 0.935, _title(summary, names), fontsize=15, fontweight="bold", color=ALL_COLOUR
    )
    figure.text(0.045, 0.887, _subtitle(summary, names), fontsize=10.5, color="#57606a")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a `metrics.jsonl`, one dictionary per line."""
    rows = []
    for number, line in enumerate(_existing(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    if not rows:
        raise ValueError(f"{path} is empty: the run ended before its first log line.")
    return rows


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. plot_run wants the folder of a finished run, which holds "
            "metrics.jsonl and summary.json."
        )
    return path


def _plot_fve(axes: Axes, metrics: list[dict], summary: dict, names: list[str]) -> None:
    pairs = [row["pairs"] for row in metrics]
    end, lowest = summary["pairs"], 1.0
    for source, name in enumerate(names):
        values = [_number(row["fve_per_source"][source]) for row in metrics]
        final = _number(summary["fve_per_source"][source])
        trimmed = _number(summary["fve_without_top5_per_source"][source])
        hookpoint = summary["sources"][source]["hookpoint"]
        label = (
            f"{name}, {hookpoint}\n"
            f"\u25cf final {final:.3f}   \u25cb without top 5 dimensions {trimmed:.3f}"
        )
        colour = SOURCE_COLOURS[source % len(SOURCE_COLOURS)]
        axes.plot(pairs, values, color=colour, linewidth=2, label=label, zorder=3)
        axes.plot(end, final, "o", color=colour, markersize=6, zorder=4)
        axes.plot(end, trimmed, "o", color=colour, markersize=6, mfc="none", mew=1.6, zorder=4)
        lowest = min([lowest, *(v for v in (final, trimmed, *values) if not math.isnan(v))])
    # The first steps can lie far below zero; showing them would flatten all that matters.
    axes.set_ylim(max(-0.05, math.floor(lowest * 10) / 10), 1.0)
    _finish(axes, "Fraction of variance explained", end)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _plot_dead(axes: Axes, metrics: list[dict], summary: dict, names: list[str]) -> None:
    pairs = [row["pairs"] for row in metrics]
    final = _number(summary["dead_fraction"])
    curves: list[tuple[str, str, float, str, int | None]] = [
        (f"all latents, final {_percent(final)}", ALL_COLOUR, 2.4, "dead_fraction", None)
    ]
    blocks = summary.get("dead_fraction_exclusive") or [None] * len(names)
    for source, (name, block) in enumerate(zip(names, blocks, strict=True)):
        if block is not None:
            label = f"exclusive to {name}, final {_percent(block)}"
            colour = SOURCE_COLOURS[source % len(SOURCE_COLOURS)]
            curves.append((label, colour, 1.8, "dead_fraction_exclusive", source))
    highest = 0.0
    for label, colour, width, key, source in curves:
        values = [_number(_item(row.get(key), source)) for row in metrics]
        axes.plot(pairs, values, color=colour, linewidth=width, label=label, zorder=3)
        highest = max([highest, *(v for v in values if not math.isnan(v))])
    axes.set_ylim(0, max(0.1, 1.3 * highest))
    axes.yaxis.set_major_formatter(lambda value, _: _percent(value))
    _finish(axes, "Dead latents", summary["pairs"])
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _plot_relative_decoder_norm(axes: Axes, summary: dict, names: list[str]) -> None:
    histogram = summary.get("relative_decoder_norm")
    axes.set_title("Latents by relative decoder norm", loc="left", fontsize=12, color=ALL_COLOUR)
    if not histogram or len(names) != 2:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "defined for two sources", ha="center", **LABEL_STYLE)
        return
    edges, counts = histogram["edges"], histogram["counts"]
    # Equation 1 is the first source's share, so what only the second one has is on the left.
    colours = (SOURCE_COLOURS[1], SHARED_COLOUR, SOURCE_COLOURS[0])
    totals = [0, 0, 0]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        middle = (left + right) / 2
        region = 0 if middle < LOW else 2 if middle > HIGH else 1
        totals[region] += count
        bar = {"color": colours[region], "edgecolor": "white", "linewidth": 0.4, "zorder": 3}
        axes.bar(left, count, right - left, align="edge", **bar)
    decades = math.ceil(math.log10(max(10, *counts)))
    axes.set_yscale("log")
    axes.set_ylim(0.7, 10 ** (1.25 * decades))  # the upper fifth is for the three labels
    axes.set_yticks([10**i for i in range(decades + 1)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.vlines((LOW, HIGH), 0.7, 10**decades, ALL_COLOUR, linestyles="dashed", lw=1, zorder=4)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, LOW, 0.4, 0.6, HIGH, 1])
    labels = (
        f"{names[1]}\nonly: {totals[0]:,}",
        f"both\n{totals[1]:,}",
        f"{names[0]}\nonly: {totals[2]:,}",
    )
    sides = ((0.01, "left"), (0.5, "center"), (0.99, "right"))
    font = {"fontsize": 9, "fontweight": "bold", "linespacing": 1.4, "va": "top"}
    label_colours = (SOURCE_COLOURS[1], LABEL_STYLE["color"], SOURCE_COLOURS[0])
    for (x, side), label, colour in zip(sides, labels, label_colours, strict=True):
        axes.text(x, 0.985, label, transform=axes.transAxes, ha=side, color=colour, **font)
    axes.set_xlabel(f"{names[0]}'s share of the latent's decoder norms", **LABEL_STYLE)
    _clean(axes)


def _finish(axes: Axes, title: str, pairs: int) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=ALL_COLOUR)
    axes.set_xlim(0, pairs * 1.02)
    axes.set_xlabel("aligned pairs seen", **LABEL_STYLE)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    _clean(axes)


def _clean(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c4cad0")
    axes.tick_params(colors="#57606a", labelsize=9, which="both")
    axes.tick_params(which="minor", length=0)
    axes.grid(axis="y", color="#e7eaed", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def _title(summary: dict, names: list[str]) -> str:
    return f"{summary['arch']}:  " + "  vs  ".join(names)


def _subtitle(summary: dict, names: list[str]) -> str:
    blocks = summary["partition"]
    partition = ", ".join(f"{size:,} {_block_name(name, names)}" for name, size in blocks.items())
    facts = (
        f"{summary['num_latents']:,} latents ({partition})",
        f"mean L0 {summary['mean_l0']:.1f}",
        f"FVE {summary['fve']:.3f}",
        f"{summary['pairs']:,} pairs in {_duration(summary['wall_seconds'])}",
    )
    return "   |   ".join(facts)


def _block_name(name: str, names: list[str]) -> str:
    """`exclusive_0` and so on with the model's name in place of its number."""
    kind, _, source = name.partition("_")
    return f"only {names[int(source)]}" if kind == "exclusive" and source.isdigit() else name


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _cut(name: str) -> str:
    """A model's name, without its middle where it would not fit a panel's corner."""
    return name if len(name) <= 24 else f"{name[:11]}\u2026{name[-12:]}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}%"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _item(value: Any, index: int | None) -> float | None:
    return value if index is None or value is None else value[index]


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot a run folder's metrics and summary.")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("png", type=Path, nargs="?", help="default: RUN_FOLDER/summary.png")
    args = parser.parse_args()
    plot_run(args.run_folder, args.png or args.run_folder / "summary.png")


if __name__ == "__main__":
    main()
