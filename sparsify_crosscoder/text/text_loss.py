"""How much of what the texts say became pairs, and what became of the rest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from .chat import SEPARATOR, Text
from .messages import REASONING, extras, normalize_messages, pieces
from .text_batch import IS_SPACE, cumulative
from .texts import rows_of
from .tokenization import SourceTokenizer
from .window_numbers import window_numbers

LEAST_SHARE = 0.5
"""Below this share of a data set's, or of one role's, characters in pairs, a warning is due."""
_TEXTS_AT_ONCE = 1_000
LOOKED_AT = 64
PLAIN = "plain"
ALL = "all"
PARTS = "parts"


class Characters(NamedTuple):
    """Characters, white space not counted."""

    said: int
    paired: int

    @property
    def share(self) -> float:
        return self.paired / max(self.said, 1)


class Extras(NamedTuple):
    """What messages have besides what they say, such as tool calls."""

    messages: int
    lost_to: list[str]
    """The tokenizers whose chat templates do not write it, all where the format is plain."""


@dataclass
class TextLoss:
    """What share of the texts is in pairs."""

    characters: dict[str, dict[str, Characters]] = field(default_factory=dict)
    """For each dataset ("texts" where there are no names) and in it for "all" and each role."""

    extras: dict[str, Extras] = field(default_factory=dict)
    """By its name, "parts" being parts of contents that are no text."""

    lossy: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Some texts of each dataset and role that lost most of their characters."""

    def characters_to_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """The characters for a report, with their share."""
        return {
            name: {
                role: {**count._asdict(), "share": round(count.share, 4)}
                for role, count in roles.items()
            }
            for name, roles in self.characters.items()
        }


def measure_loss(
    texts: Dataset, windows: Dataset, sources: Sequence[SourceTokenizer], chat_format: str
) -> TextLoss:
    """Count the characters of every dataset and role that the pairs of `windows` stand for.

    `windows` are what `prepare_windows` made of `texts`, in their order, or some of the first.
    """
    names = getattr(texts.features.get("dataset"), "names", ["texts"])
    said: Counter[tuple[str, str]] = Counter()
    paired: Counter[tuple[str, str]] = Counter()
    loss = TextLoss()
    found: Counter[str] = Counter()
    text_ids = window_numbers(windows, "text_id")
    first = 0
    for batch in texts.with_format(None).iter(_TEXTS_AT_ONCE):
        rows: Any = batch
        count = len(next(iter(rows.values())))
        said_by = [said_in(row, found) for row in rows_of(rows)]
        labels = rows.get("dataset", [0] * count)
        starts, ends = _pairs(windows, text_ids, first, count)
        per_piece = _covered(said_by, starts, ends)
        for number, (pieces_of_text, counts) in enumerate(zip(said_by, per_piece, strict=True)):
            for (role, _), (total, kept) in zip(pieces_of_text, counts, strict=True):
                key = (names[labels[number]], role)
                said[key] += total
                paired[key] += kept
                lossy = loss.lossy.setdefault(key, [])
                is_new = len(lossy) < LOOKED_AT and first + number not in lossy[-1:]
                if kept < total * LEAST_SHARE and is_new:
                    lossy.append(first + number)
        first += count
    loss.extras = {
        key: Extras(
            count,
            [
                source.name
                for source in dict.fromkeys(sources)
                if key == PARTS
                or chat_format == "plain"
                or key not in str(source.tokenizer.chat_template)
            ],
        )
        for key, count in found.items()
    }
    for name in dict.fromkeys(name for name, _ in said):
        roles = {
            role: Characters(total, paired[name, role])
            for (dataset, role), total in said.items()
            if dataset == name and total
        }
        whole = Characters(
            sum(count.said for count in roles.values()),
            sum(count.paired for count in roles.values()),
        )
        loss.characters[name] = {ALL: whole} | roles
    return loss


def said_in(row: Text, found: Counter[str]) -> list[tuple[str, str]]:
    """Who says what in a text; counts in `found` what else the messages hold."""
    if isinstance(row, str):
        return [(PLAIN, row)]
    messages = normalize_messages(row)
    for message in messages:
        more = extras(message)
        about = more.pop("conversation", {})
        names = more.keys() | about.keys()
        found.update(names.difference(REASONING))
    return [(role, text.strip()) for _, role, text in pieces(messages)]


def _pairs(
    windows: Dataset, text_ids: np.ndarray, first: int, count: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each of `count` texts from `first` on, where its pairs start and end."""
    bounds = np.searchsorted(text_ids, np.arange(first, first + count + 1))
    part: Any = windows.select(range(bounds[0], bounds[-1])).with_format("arrow")[:]
    sides = []
    for name in ("starts", "ends"):
        column = part[name].combine_chunks()
        flat = column.flatten().to_numpy()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        edges = np.append(0, np.cumsum(lengths))[bounds - bounds[0]]
        sides.append([flat[a:b] for a, b in pairwise(edges)])
    return sides[0], sides[1]


def _covered(
    said_by: Sequence[list[tuple[str, str]]],
    starts: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
) -> list[list[tuple[int, int]]]:
    """For each piece of each text, its characters and those of them that pairs stand for."""
    plains = [SEPARATOR.join(text for _, text in said) for said in said_by]
    codes = np.frombuffer("".join(plains).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    before = cumulative(~IS_SPACE[np.minimum(codes, len(IS_SPACE) - 1)])
    offsets = np.cumsum([0, *map(len, plains)])
    changes = np.zeros(before[-1] + 1, dtype=np.int64)
    for sides, change in ((starts, 1), (ends, -1)):
        places = [side + offset for side, offset in zip(sides, offsets[:-1], strict=True)]
        np.add.at(changes, before[np.concatenate(places).astype(np.int64)], change)
    paired = cumulative(np.cumsum(changes)[:-1] > 0)
    result = []
    for said, offset in zip(said_by, offsets.tolist(), strict=False):
        counts = []
        for _, text in said:
            first, last = before[offset], before[offset + len(text)]
            counts.append((int(last - first), int(paired[last] - paired[first])))
            offset += len(text) + len(SEPARATOR)
        result.append(counts)
    return result


def visible(text: str) -> int:
    """How many characters of a text are not white space."""
    return sum(not character.isspace() for character in text)
