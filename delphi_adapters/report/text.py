"""Text that somebody else wrote, made harmless for Markdown and for a terminal.

The page does the same for what it shows in `page/text.js`.
"""

from __future__ import annotations

import re

CUT = 2_000  # characters of a text that are shown
LINE = 160  # and of one on a line of a terminal

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e0fff\ud800-\udfff]"
)
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;", "@": "&#64;"}
_MARKUP = re.compile(
    r"[\\`*_\[\]|~#!$<>&@{}^]|(?<=[a-z]):(?=\S)|(?<=www)\.|^[-+](?=\s)|^\d+[.)](?=\s)", re.I
)


def visible(text: str) -> str:
    """Text in which what cannot be seen, or turns the order of others, is spelt out.

    Control characters, marks of direction and halves of surrogate pairs become their numbers.
    Lines end with a line feed.
    """
    return _UNSEEN.sub(_spelt, text.replace("\r\n", "\n"))


def cut(text: str, limit: int = CUT) -> str:
    """The beginning of a text, with a note of how much is left out."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more]"


def one_line(text: str, limit: int = LINE) -> str:
    """Text on one line of a terminal, in which nothing is hidden."""
    return " ".join(visible(cut(text, limit)).split())


def inline(text: str, limit: int = CUT) -> str:
    """Text on one line of Markdown, also in a cell, of which nothing is markup, HTML or a link."""
    line = " ".join(visible(cut(text, limit)).split())
    return _MARKUP.sub(_escaped, line)


def block(text: str, limit: int = CUT) -> str:
    """Text in a code block of Markdown that it cannot end."""
    shown = visible(cut(text, limit))
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}text\n{shown}\n{fence}"


def _spelt(match: re.Match[str]) -> str:
    return f"\u27e8U+{ord(match[0]):04X}\u27e9"


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    return _ENTITIES.get(found) or (
        f"{found[:-1]}\\{found[-1]}" if found[0].isdigit() else f"\\{found}"
    )
