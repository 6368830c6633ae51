"""Dose-response of rubric ratings: a panel for each dimension, a line for each model (Figure 6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..judging.rubric_runs import Curve, RubricResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERCENT = 20
"""The paper shows a rating of 1 as 20% and one of 5 as 100%."""

_MARKERS = "osD^v"


def dose_response_figure(result: RubricResult, title: str = "") -> Figure:
    """Means over the prompts by strength, with their 95% intervals as bands.

    Ratings are at the left, the paper's percentages at the right. Strengths without any rating are
    left out. The figure belongs to no window; `figure.savefig(path)` writes it.
    """
    from matplotlib.figure import Figure

    labels = result.rubric.labels
    figure = Figure(figsize=(4.2 * len(labels) + 0.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for panel, label in zip(panels, labels, strict=True):
        for number, (model, curve) in enumerate(result.curves(label).items()):
            _draw(panel, curve, f"C{number}", _MARKERS[number % len(_MARKERS)], _plain(model))
        panel.set_title(label.replace("_", " ").capitalize())
        panel.set_xlabel("steering strength")
        panel.set_ylim(0.85, 5.15)
        panel.set_yticks(range(1, 6))
        panel.grid(alpha=0.25, linewidth=0.5)
        if min(result.rubric.strengths) < 0 < max(result.rubric.strengths):
            panel.axvline(0, color="0.6", linewidth=0.8)
    panels[0].set_ylabel("rating (1 to 5)")
    percent = panels[-1].secondary_yaxis(
        "right", functions=(lambda x: PERCENT * x, lambda x: x / PERCENT)
    )
    percent.set_ylabel("%")
    panels[0].legend(fontsize="small")
    figure.suptitle(_plain(title))
    return figure


def save_dose_response(result: RubricResult, path: str | Path, title: str = "") -> None:
    """Draw to a file whose ending says how, such as .png or .svg."""
    from sparsify_crosscoder.files import atomic_path

    path = Path(path)
    figure = dose_response_figure(result, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.removeprefix(".") or "png")


def _draw(panel: Axes, curve: Curve, color: str, marker: str, label: str) -> None:
    values = np.array([curve.strengths, curve.mean, curve.low, curve.high], dtype=float)
    x, mean, low, high = values[:, ~np.isnan(values[1])]
    panel.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    panel.plot(x, mean, color=color, marker=marker, markersize=4, label=label)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a pair of them would be a formula
