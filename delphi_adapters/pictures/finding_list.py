"""A list of findings as a picture: a bar for each, by its score.

The SVG and the PNG are drawn from the same marks. Neither names a font that has to be fetched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

SVG, PNG = "findings.svg", "findings.png"

WIDE, EDGE, ROW, LINE = 960, 28, 58, 22
BAR_LEFT, BAR_WIDE = 560, 230
LETTERS = 74  # of a line left of the bars
WHOLE_LINE = 120  # letters of a line of the whole picture
INK, SOFT, GROUND, RAIL = "#1c2227", "#5b666f", "#fbfbf9", "#e4e7e5"
COLOURS = ("#2f6db3", "#b35c0c", "#35805e", "#8a5aa8")


class Entry(NamedTuple):
    """A finding."""

    rank: int
    what: str
    """Whose it is, and of what kind."""

    told: str
    """What it is about; may be empty."""

    source: int
    """The model whose it is, which gives the bar its colour."""

    score: float
    values: str
    """The score and how sure it is, as the list has them."""


class Text(NamedTuple):
    """A line of text from `x` on, its foot at `y`."""

    x: float
    y: float
    text: str
    size: int
    colour: str


class Bar(NamedTuple):
    """A rectangle of the height of a bar."""

    x: float
    y: float
    width: float
    colour: str


class Picture(NamedTuple):
    """Marks from the upper left corner, in pixels, and what they say in words."""

    height: int
    marks: list[Text | Bar]
    title: str
    description: str


def finding_list(title: str, entries: Sequence[Entry], notes: Sequence[str]) -> Picture:
    """The entries in their order below a title, and the notes below them."""
    title = textwrap.shorten(title, 90, placeholder=" …")
    marks: list[Text | Bar] = [Text(EDGE, 46, title, 22, INK)]
    most = max((one.score for one in entries), default=0.0) or 1.0
    y = 76
    for one in entries:
        what = textwrap.shorten(f"{one.rank}. {one.what}", LETTERS, placeholder=" …")
        marks.append(Text(EDGE, y + 14, what, 15, INK))
        marks.append(Text(EDGE, y + 34, one.told[:LETTERS], 13, SOFT))
        marks.append(Bar(BAR_LEFT, y + 2, BAR_WIDE, RAIL))
        length = BAR_WIDE * max(one.score, 0.0) / most
        marks.append(Bar(BAR_LEFT, y + 2, length, COLOURS[one.source % len(COLOURS)]))
        marks.append(Text(BAR_LEFT, y + 36, one.values, 13, INK))
        y += ROW
    for note in notes:
        for line in textwrap.wrap(note, WHOLE_LINE, break_on_hyphens=False):
            y += LINE
            marks.append(Text(EDGE, y, line, 14, SOFT))
        y += 6
    said = [f"{one.rank}. {one.what}: {one.values}." for one in entries]
    return Picture(y + EDGE, marks, title, " ".join([*said, *notes]))


def svg(picture: Picture) -> str:
    """The picture as SVG, with its title and description for those who cannot see it."""
    return "".join(_svg(picture))


def write_png(picture: Picture, path: Path) -> None:
    """The same at twice the size; raises ModuleNotFoundError without matplotlib."""
    import warnings

    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    dpi = 144
    figure = Figure(figsize=(WIDE / 72, picture.height / 72), dpi=dpi, facecolor=GROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDE), ylim=(picture.height, 0))
    axes.set_axis_off()
    for mark in picture.marks:
        if isinstance(mark, Bar):
            axes.add_patch(Rectangle((mark.x, mark.y), mark.width, 16, color=mark.colour, lw=0))
        else:
            style = {"fontsize": mark.size * 0.88, "color": mark.colour, "parse_math": False}
            axes.text(mark.x, mark.y, mark.text, **style)
    with warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(path, format="png", dpi=dpi, facecolor=GROUND)


def can_write_png() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def _svg(picture: Picture) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{picture.height}" '
        f'viewBox="0 0 {WIDE} {picture.height}" role="img" aria-labelledby="title desc" '
        'font-family="system-ui, sans-serif">\n'
        f'<title id="title">{escape(picture.title)}</title>\n'
        f'<desc id="desc">{escape(picture.description)}</desc>\n'
        f'<rect width="100%" height="100%" fill="{GROUND}"/>\n'
    )
    for one in picture.marks:
        place = f'x="{one.x:g}" y="{one.y:g}"'
        if isinstance(one, Bar):
            shape = f'width="{one.width:.2f}" height="16" rx="2" fill="{one.colour}"'
            yield f"<rect {place} {shape}/>\n"
        else:
            style = f'font-size="{one.size}" fill="{one.colour}"'
            yield f"<text {place} {style}>{escape(one.text)}</text>\n"
    yield "</svg>\n"
