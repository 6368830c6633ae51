"""Plain tables, which every form of a report shows, and numbers for their cells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latent:
    """A cell that leads to a latent's page."""

    index: int


Cell = str | Latent


@dataclass(frozen=True)
class Sheet:
    """A table with a heading and a note; every row has as many cells as `head`."""

    title: str
    note: str
    head: list[str]
    rows: list[list[Cell]]
    """Numbers are in words already, so that all forms of the report say the same."""


def number(value: float | int | None, digits: int = 2) -> str:
    """A number for a cell; a dash for none."""
    if value is None or value != value:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """A share of one in percent; a dash for none."""
    return "-" if value is None or value != value else f"{value:.1%}"
