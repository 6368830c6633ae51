"""The table and the two figures of a toy benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .presets import VARIANTS


class MeanAndError(NamedTuple):
    """Mean over seeds and its standard error, 0 for a single seed."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.error:.2f}"


def over_seeds(values: Sequence[float]) -> MeanAndError:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return MeanAndError(statistics.fmean(values), error)


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "shared recovered": lambda r: r["scores"]["shared_recovery"],
    "exclusive recall": lambda r: r["scores"]["exclusive_recall"],
    "false positives": lambda r: r["scores"]["false_positive_rate"],
    "of these shared": lambda r: r["scores"]["false_positives_shared"],
    "called exclusive": lambda r: r["scores"]["called_exclusive"],
    "FVE": lambda r: r["fve"],
    "exclusive recall, filtered": lambda r: r["scores_filtered"]["exclusive_recall"],
    "false positives, filtered": lambda r: r["scores_filtered"]["false_positive_rate"],
}


def by_variant_and_size(
    rows: Sequence[dict[str, Any]],
) -> dict[str, dict[float, list[dict[str, Any]]]]:
    """Rows of each variant and size, variants in their usual order, sizes ascending."""
    names = sorted({r["variant"] for r in rows}, key=list(VARIANTS).index)
    return {
        name: {
            size: [r for r in rows if r["variant"] == name and r["size"] == size]
            for size in sorted({r["size"] for r in rows if r["variant"] == name})
        }
        for name in names
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds and their standard errors, one line per variant and size."""
    lines = [
        "| architecture, size | runs | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, sizes in by_variant_and_size(rows).items():
        for size, runs in sizes.items():
            cells = [str(over_seeds([read(r) for r in runs])) for read in COLUMNS.values()]
            lines.append(f"| {name}, {size:g}x | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Write `recall.png` (Figure 4) and `learning.png` (Figure 15) into `out`.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    return [_draw_recall(rows, out / "recall.png"), _draw_learning(rows, out / "learning.png")]


def _draw_recall(rows: Sequence[dict[str, Any]], png: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True, layout="constrained")
    for i, (name, sizes) in enumerate(by_variant_and_size(rows).items()):
        for axis, column in zip(axes, ("exclusive recall", "false positives"), strict=True):
            for suffix, style in (("", "o-"), (", filtered", "s--")):
                read = COLUMNS[column + suffix]
                points = [over_seeds([read(r) for r in runs]) for runs in sizes.values()]
                label = None if suffix else name
                axis.plot(list(sizes), [m for m, _ in points], style, color=f"C{i}", label=label)
                low, high = ([m + sign * e for m, e in points] for sign in (-1, 1))
                axis.fill_between(list(sizes), low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    axes[0].set(ylabel="exclusive concepts recalled")
    axes[1].set(ylabel="false-positive rate of exclusive latents")
    for axis in axes:
        axis.set(xlabel="latents per concept", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].plot([], [], "s--", color="0.4", label="after the filter")
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(png, dpi=150)
    plt.close(figure)
    return png


def _draw_learning(rows: Sequence[dict[str, Any]], png: Path) -> Path:
    import matplotlib.pyplot as plt

    largest = max(r["size"] for r in rows)
    variants = by_variant_and_size([r for r in rows if r["size"] == largest])
    figure, axes = plt.subplots(
        1,
        len(variants),
        figsize=(3.2 * len(variants), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, sizes) in zip(axes[0], variants.items(), strict=True):
        runs = sizes[largest]
        pairs = [s["pairs"] / 1e6 for s in runs[0]["snapshots"]]
        for kind, colour in (("shared", "C7"), ("exclusive", "C3")):
            points = [
                over_seeds([run["snapshots"][t][kind] for run in runs]) for t in range(len(pairs))
            ]
            axis.plot(pairs, [m for m, _ in points], color=colour, label=kind)
            low, high = ([m + sign * e for m, e in points] for sign in (-1, 1))
            axis.fill_between(pairs, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=f"{name}, {largest:g}x", xlabel="million pairs", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel="concepts recovered")
    axes[0][0].legend(frameon=False)
    figure.savefig(png, dpi=150)
    plt.close(figure)
    return png
