"""What an audit found, for people: a page, the same as Markdown, and the table of all latents."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from sparsify_crosscoder.files import atomic_path

from ..explaining.features import write_features
from .data import (
    Context,
    Curve,
    Duplicate,
    FeatureDetail,
    Judgement,
    NullRate,
    ReportData,
    Searched,
    SteeredOutputs,
)

__all__ = [
    "Context",
    "Curve",
    "Duplicate",
    "FeatureDetail",
    "Judgement",
    "NullRate",
    "ReportData",
    "Searched",
    "SteeredOutputs",
    "write_report",
]


def write_report(data: ReportData, folder: Path) -> None:
    """Write report.html, report.md, features.parquet and findings.svg, all or none.

    With matplotlib also findings.png. Files that are there already are replaced once all are
    written.
    """
    from ..pictures.finding_list import PNG, SVG, svg, write_png
    from .answer import picture_files, picture_of
    from .html import html_report
    from .markdown import markdown_report

    folder = Path(folder)
    picture = picture_of(data)
    with (
        ExitStack() as pictures,
        atomic_path(folder / "features.parquet") as table,
        atomic_path(folder / "report.md") as text,
        atomic_path(folder / "report.html") as page,
        atomic_path(folder / SVG) as drawn,
    ):
        write_features(data.features, table)
        _write(text, markdown_report(data))
        _write(page, html_report(data))
        _write(drawn, [svg(picture)])
        if PNG in picture_files():
            write_png(picture, pictures.enter_context(atomic_path(folder / PNG)))


def _write(path: Path, parts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)
