"""Where the tokens of a text end, and why some of them are in no pair."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Reason(IntEnum):
    """Why a token is in no pair."""

    PAIRED = 0
    """It is in one."""
    SPECIAL = 1
    """A special token: added by the tokenizer, by a chat template, or spelled out in the text."""
    WHITE_SPACE = 2
    """White space and nothing else."""
    TEMPLATE = 3
    """Written by the chat template around the messages, as roles and dates are."""
    FIRST = 4
    """The first token of the sequence, where `NonContent.first` is set."""
    EXCLUDED = 5
    """One of `NonContent.token_ids`."""
    INSIDE_CHARACTER = 6
    """Ends inside a character that the tokenizer has rewritten: its bytes compare to no other's."""
    INSIDE_WINDOW = 7
    """Content, but another source ends no token here: part of the window of the next pair."""
    UNREAD = 8
    """Content that was cut off in another source by `max_length`."""
    PADDING = 9
    """Padding."""


CONTENT = (Reason.PAIRED, Reason.INSIDE_WINDOW, Reason.INSIDE_CHARACTER)
"""What the tokens of a text that hold content can have as `Reason`."""


@dataclass(frozen=True)
class NonContent:
    """Which tokens of a source are never paired: `is_non_content` of Algorithm 1 (B.1.6).

    Always: special tokens wherever they stand, tokens of white space alone (fragments of a
    white-space character included), what a chat template writes around the messages, and padding.
    A text's first token and further ids can be added.
    """

    first: bool = False
    """The first token of the sequence, be it BOS or text: models use it as an attention sink."""

    token_ids: frozenset[int] = frozenset()
    """Ids of this source's vocabulary that are to be left out as well."""


DEFAULT_RULE = NonContent()


class TokenEnds(NamedTuple):
    """The tokens of a `TextBatch`, one text behind the other, without special tokens around."""

    ids: np.ndarray
    """Token ids, int32 [N]."""

    bounds: np.ndarray
    """Where each text's tokens begin [T + 1]."""

    ends: np.ndarray
    """How much content was read with each token, int64 [N]; increasing where `reasons` is 0."""

    reasons: np.ndarray
    """`Reason` of each token that cannot be paired, uint8 [N]."""

    refused: dict[int, str]
    """Texts of which nothing can be paired, and why."""
