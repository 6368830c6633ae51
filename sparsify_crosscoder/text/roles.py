"""Who said what a pair stands for, and which model wrote it."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from .chat import SEPARATOR, Text
from .messages import normalize_messages, pieces

ROLES, WRITERS = "roles", "writers"
"""Columns of windows: a role and a writer for each pair. Windows of plain texts have neither."""

WRITER = "writer"
"""Column of a dataset of texts: which source wrote the last message of each, or `NO_WRITER`."""

LETTERS = "ABCDEFGH"
"""What the sources are called, in their order."""

NO_WRITER = -1
"""The writer of what came with the data set."""


class Role(IntEnum):
    """Who said what a pair stands for."""

    UNKNOWN = -1
    """Windows of an earlier version, which did not note it."""
    PLAIN = 0
    """Plain text."""
    SYSTEM = 1
    """A system's or a developer's message."""
    USER = 2
    ASSISTANT = 3
    """An assistant's message, its reasoning included."""
    TEMPLATE = 4
    """Nobody: what a chat template writes around the messages."""
    OTHER = 5
    """A tool's message, or that of a role with another name."""


_ROLES = {
    **dict.fromkeys(("system", "developer"), Role.SYSTEM),
    "user": Role.USER,
    **dict.fromkeys(("assistant", "reasoning"), Role.ASSISTANT),
}


def roles_of(
    text: Text, ends: np.ndarray, template: np.ndarray, writer: int = NO_WRITER
) -> tuple[np.ndarray, np.ndarray]:
    """Role and writer of the pairs of one text, int8 [P] both.

    `ends` [P] are the characters of `plain_text(text)` behind which the pairs end, `template` [P]
    says which are a chat template's. `writer` wrote the last message if that is an assistant's.
    """
    writers = np.full(len(ends), NO_WRITER, dtype=np.int8)
    if isinstance(text, str):
        return np.full(len(ends), Role.PLAIN, dtype=np.int8), writers
    messages = normalize_messages(text)
    said = pieces(messages)
    if not said:
        return np.full(len(ends), Role.OTHER, dtype=np.int8), writers
    starts = np.cumsum([0, *(len(words.strip()) + len(SEPARATOR) for _, _, words in said[:-1])])
    piece = np.maximum(np.searchsorted(starts, ends, side="left") - 1, 0)
    roles = np.array([_ROLES.get(role, Role.OTHER) for _, role, _ in said], dtype=np.int8)[piece]
    roles[template] = Role.TEMPLATE
    is_last = np.array([number == len(messages) - 1 for number, _, _ in said])[piece]
    writers[is_last & (roles == Role.ASSISTANT)] = writer
    return roles, writers


def who_said(window: Mapping[str, Any], position: int) -> str:
    """Who said what a window's pair stands for, such as "user" or "assistant, written by B".

    Nothing for plain text and where that is not known.
    """
    if ROLES not in window or (role := window[ROLES][position]) in (Role.UNKNOWN, Role.PLAIN):
        return ""
    (name,) = role_names([role])
    writer = window[WRITERS][position]
    return name if writer == NO_WRITER else f"{name}, written by {LETTERS[writer]}"


def role_names(roles: Sequence[int] | np.ndarray) -> list[str]:
    """The names of some roles, in lower case."""
    return [Role(int(role)).name.lower() for role in roles]
