"""The pages of the documentation, and what stands in their fenced blocks."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


def pages() -> list[Path]:
    """README and every page of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block."""

    line: int
    """Of its first fence, from 1."""

    language: str
    text: str


def place(page: Path, block: Block) -> str:
    """Where a block is, for example `docs/guides/steer.md:12`."""
    return f"{page.relative_to(ROOT)}:{block.line}"


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a console block, comments and assignments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    shell = ("for", "done", "export")
    return [w for w in words if w and w[0] not in shell and "=" not in w[0]]
