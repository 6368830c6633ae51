"""Draw the pictures of the documentation: `python examples/pictures.py` writes docs/pictures."""

import argparse
import sys
from html import escape
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
A, BOTH, B, INK, PAPER = "#c2620a", "#6b6f76", "#2563a8", "#22262b", "#ffffff"


class Drawing:
    """Shapes of one picture, in the order in which they are drawn."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str = PAPER) -> None:
        edge = "none" if fill != PAPER else INK
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'fill="{fill}" stroke="{edge}"/>'
        )

    def text(
        self, x: float, y: float, words: str, color: str = INK, anchor: str = "middle"
    ) -> None:
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
        self.shapes.append(
            f'<line x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}" '
            f'stroke="{color}" stroke-width="1.5"/>'
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
        self.line(start, end, color)
        side = 1 if end[0] > start[0] else -1
        x, y = end
        self.shapes.append(
            f'<path d="M{x:g} {y:g} l{-7 * side} -4 v8 z" fill="{color}" stroke="none"/>'
        )

    def tokens(self, y: float, tokens: list[str], color: str, unit: float, x: float) -> list[float]:
        """A row of tokens, each as wide as its letters; where each of them ends."""
        ends = []
        for token in tokens:
            width = unit * len(token)
            self.box(x + 1, y, width - 2, 24, color)
            self.text(x + width / 2, y + 16, token.replace(" ", "\N{OPEN BOX}"), PAPER)
            x += width
            ends.append(x)
        return ends

    def svg(self, title: str) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13">'
        )
        paper = f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>'
        return "\n".join([head, f"<title>{escape(title)}</title>", paper, *self.shapes, "</svg>\n"])


TEXT_A = ["Mar", "avel", " Bay", " sal", "t"]
TEXT_B = ["Maravel", " B", "ay", " salt"]


def aligned(drawing: Drawing, x: float, y: float, unit: float) -> None:
    """Both models' tokens of one text, joined where they end together."""
    ends_a = drawing.tokens(y, TEXT_A, A, unit, x)
    ends_b = drawing.tokens(y + 60, TEXT_B, B, unit, x)
    for end in sorted(set(ends_a) & set(ends_b)):
        drawing.line((end - 4, y + 24), (end - 4, y + 60))


def idea() -> str:
    drawing = Drawing(860, 300)
    drawing.text(20, 92, "model A's tokens", A, "start")
    drawing.text(20, 215, "model B's tokens", B, "start")
    aligned(drawing, 20, 105, 14)
    drawing.text(20, 250, "paired where both end", INK, "start")
    drawing.arrow((255, 117), (365, 75), A)
    drawing.arrow((255, 177), (365, 225), B)
    drawing.text(322, 85, "read", A)
    drawing.text(322, 232, "read", B)
    for y, height, color, words in (
        (40, 40, A, "latents of A alone"),
        (85, 130, BOTH, "shared latents"),
        (220, 40, B, "latents of B alone"),
    ):
        drawing.box(370, y, 180, height, color)
        drawing.text(460, y + height / 2 + 5, words, PAPER)
    drawing.text(460, 25, "one sparse code")
    for start, end, color in ((60, 92, A), (130, 104, BOTH), (170, 204, BOTH), (240, 214, B)):
        drawing.arrow((555, start), (655, end), color)
    for y, color, words in ((82, A, "A's activation"), (190, B, "B's activation")):
        drawing.box(660, y, 180, 40, color)
        drawing.text(750, y + 25, words, PAPER)
    drawing.text(750, 25, "reconstructed")
    return drawing.svg("Two models read one text; one sparse code reconstructs both")


PICTURE = {"idea.svg": idea}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder to write into")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURE.items():
        (args.out / name).write_text(draw(), encoding="utf-8")
        print(args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
