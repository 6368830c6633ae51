"""Texts as bytes, and positions in them that do not depend on white space."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

# No character from U+3001 on is white space, so the table's last entry stands for all of them.
IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])


class TextBatch:
    """Texts as one run of UTF-8 bytes, in which positions are counted in bytes of content.

    White space is not content: all positions between two bytes of content are one.
    Raises ValueError for text that is not Unicode (lone surrogates).
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        encoded = utf8(texts)
        self.data = b"".join(encoded)
        self.bounds = np.cumsum([0, *map(len, encoded)])
        """Where each text begins, in bytes [T + 1]."""
        self.is_content = is_content(self.data)
        """Which bytes are not white space [bytes]."""
        self.content = cumulative(self.is_content)
        """How much content lies before each byte [bytes + 1]."""

    @cached_property
    def character_starts(self) -> np.ndarray:
        """Where each character begins, in bytes, and where the last ends [characters + 1]."""
        starts = np.flatnonzero(_starts_character(self.data))
        return np.append(starts, len(self.data))

    @cached_property
    def character_bounds(self) -> np.ndarray:
        """Where each text begins, in characters [T + 1]."""
        return np.cumsum([0, *map(len, self.texts)])

    def positions(self, text: int, characters: np.ndarray) -> np.ndarray:
        """Content before the given characters of one text."""
        return self.content[self.character_starts[self.character_bounds[text] + characters]]

    def characters(self, positions: np.ndarray) -> np.ndarray:
        """Behind which character, counted from the first text's start, each position lies.

        A position inside a character counts as behind it, as in tokenizers' own offsets.
        """
        read = np.append(0, np.flatnonzero(self.is_content) + 1)[positions]
        if len(self.data) == self.character_bounds[-1]:
            return read
        return cumulative(_starts_character(self.data))[read]


def utf8(texts: Sequence[str]) -> list[bytes]:
    """The texts in UTF-8; raises ValueError for one with lone surrogates."""
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A text holds half of a character (lone surrogate {error.object[error.start]!r} at "
            f"{error.start}), which no tokenizer reads. Clean it with "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from error


def is_content(data: bytes) -> np.ndarray:
    """Which bytes of a UTF-8 string belong to characters other than white space."""
    units = np.frombuffer(data, dtype=np.uint8)
    if data.isascii():
        return ~IS_SPACE[units]
    codes = np.frombuffer(data.decode().encode("utf-32-le"), dtype="<u4")
    space = IS_SPACE[np.minimum(codes, len(IS_SPACE) - 1)]
    return ~space[np.cumsum(_starts_character(data)) - 1]


def _starts_character(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8) & 0xC0 != 0x80


def cumulative(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... values."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=total[1:])
    return total
