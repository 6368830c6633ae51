"""Figures out of the benchmarks' Markdown, so that they stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def find(file: str, heading: str, *cells: str, column: str) -> float:
    """The number in a column of the first table row below a heading that begins with these cells.

    Looked for in all tables under the heading that have the column; of `1,234 / 5,678` the last
    number is taken. Raises ValueError where there is none.
    """
    text = (FOLDER / file).read_text(encoding="utf-8")
    inside = False
    head: list[str] = []
    before: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            inside = line.lstrip("#").strip() == heading
        row = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not inside or not line.startswith("|"):
            continue
        if all(re.fullmatch(r":?-+:?", cell) for cell in row):
            head = before
        elif column in head and row[: len(cells)] == list(cells):
            numbers = re.findall(r"[\d,]*\.?\d+", row[head.index(column)])
            return float(numbers[-1].replace(",", ""))
        before = row
    raise ValueError(f"{file} has no {column} of {' | '.join(cells)} below '{heading}'.")
