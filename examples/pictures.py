"""Draw the pictures of the documentation: `python examples/pictures.py` writes docs/pictures."""

import argparse
import sys
from html import escape
from itertools import pairwise
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


def alignment() -> str:
    drawing = Drawing(620, 130)
    drawing.text(20, 42, "A", A, "start")
    drawing.text(20, 102, "B", B, "start")
    aligned(drawing, 50, 25, 30)
    return drawing.svg("Two tokenizers cut one text; tokens are paired where both end")


ARCHITECTURES = {
    "standard": (("shared", BOTH, 4),),
    "DFC": (("A", A, 1), ("shared", BOTH, 2), ("B", B, 1)),
    "DSF": (("one decoder", BOTH, 1), ("shared", BOTH, 3)),
    "residual DFC": (("A less map of B", A, 1), ("shared", BOTH, 2), ("B less map of A", B, 1)),
}
SIDES = {A: "reads and writes A", B: "reads and writes B", BOTH: "reads and writes both"}


def partitions() -> str:
    drawing = Drawing(860, 290)
    for number, (name, blocks) in enumerate(ARCHITECTURES.items()):
        x, y = 20 + 210 * number, 40
        drawing.text(x + 90, 25, name)
        for words, color, share in blocks:
            drawing.box(x, y, 180, 45 * share - 4, color)
            drawing.text(x + 90, y + 45 * share / 2 + 3, words, PAPER)
            y += 45 * share
    for number, (color, words) in enumerate(SIDES.items()):
        drawing.box(20 + 210 * number, 245, 16, 16, color)
        drawing.text(44 + 210 * number, 258, words, INK, "start")
    return drawing.svg("Which models the latents of each architecture read and write")


def steps(drawing: Drawing, y: float, words: list[str]) -> list[float]:
    """Boxes with arrows between; where the middle of each is."""
    middles = [20 + 220 * number + 80 for number in range(len(words))]
    for middle, said in zip(middles, words, strict=True):
        drawing.box(middle - 80, y, 160, 44)
        for line, part in enumerate(parts := said.split("|")):
            drawing.text(middle, y + 27 - 8 * (len(parts) - 1) + 16 * line, part)
    for before, after in pairwise(middles):
        drawing.arrow((before + 84, y + 22), (after - 84, y + 22), INK)
    return middles


def verdicts() -> str:
    drawing = Drawing(860, 170)
    asked = [
        "exclusive|latent",
        "predicted by|the other model?",
        "moves what is|the other's own?",
        "kept",
    ]
    middles = steps(drawing, 20, asked)
    for middle, verdict in zip(middles[1:3], ("predictable", "shadow"), strict=True):
        drawing.line((middle, 64), (middle, 100), BOTH)
        drawing.box(middle - 60, 100, 120, 30, BOTH)
        drawing.text(middle, 120, verdict, PAPER)
        drawing.text(middle + 8, 86, "yes", INK, "start")
    drawing.text(
        860 / 2, 156, "no verdict where a threshold lies within the interval: not scorable"
    )
    return drawing.svg("From an exclusive latent to a verdict")


def nulls() -> str:
    drawing = Drawing(860, 200)
    steps(drawing, 20, ["models A and B", "pairs", "crosscoder", "list: true and false"])
    steps(
        drawing,
        120,
        [
            "a null: differs in|nothing looked for",
            "the same texts",
            "trained the same",
            "list: all false",
        ],
    )
    drawing.line((760, 120), (760, 64), A)
    drawing.text(752, 97, "q", A, "end")
    return drawing.svg("A null takes the run's own way, and what it lists is false")


PICTURE = {
    "idea.svg": idea,
    "alignment.svg": alignment,
    "partitions.svg": partitions,
    "filter.svg": verdicts,
    "nulls.svg": nulls,
}


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
