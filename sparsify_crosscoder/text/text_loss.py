"""How much of what the texts say became pairs, and what became of the rest."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from jinja2.exceptions import TemplateError

from .chat import SEPARATOR, plain_text
from .messages import REASONING, extras, normalize_messages, pieces
from .pairing import Rendered, Text, behind_gaps, pair_tokens, render
from .text_batch import IS_SPACE, cumulative
from .tokenization import SourceTokenizer

LEAST_SHARE = 0.5
"""Below this share of a data set's, or of one role's, characters in pairs, a warning is due."""
_LEAST_PART = 0.01  # of a dataset's characters, for a role to be looked at
_TEXTS_AT_ONCE = 1_000
_LOOKED_AT = 64
_PLAIN = "plain"
_ALL = "all"
_PARTS = "parts"


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
    text_ids = np.asarray(windows.with_format("numpy")["text_id"], dtype=np.int64)
    first = 0
    for batch in texts.with_format(None).iter(_TEXTS_AT_ONCE):
        rows: Any = batch
        count = len(next(iter(rows.values())))
        said_by = [_said(row, found) for row in rows_of(rows)]
        labels = rows.get("dataset", [0] * count)
        starts, ends = _pairs(windows, text_ids, first, count)
        per_piece = _covered(said_by, starts, ends)
        for number, (pieces_of_text, counts) in enumerate(zip(said_by, per_piece, strict=True)):
            for (role, _), (total, kept) in zip(pieces_of_text, counts, strict=True):
                key = (names[labels[number]], role)
                said[key] += total
                paired[key] += kept
                lossy = loss.lossy.setdefault(key, [])
                is_new = len(lossy) < _LOOKED_AT and first + number not in lossy[-1:]
                if kept < total * LEAST_SHARE and is_new:
                    lossy.append(first + number)
        first += count
    loss.extras = {
        key: Extras(
            count,
            [
                source.name
                for source in dict.fromkeys(sources)
                if key == _PARTS
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
        loss.characters[name] = {_ALL: whole} | roles
    return loss


def warn_of_loss(
    loss: TextLoss,
    texts: Dataset,
    sources: Sequence[SourceTokenizer],
    chat_format: str,
    exclude_tokens: Sequence[int] = (),
) -> None:
    """Log a warning for what lost more than half, with the commonest reason."""
    logger = logging.getLogger(__name__)
    for name, roles in loss.characters.items():
        for role, count in roles.items():
            if role == _ALL and len(roles) == 2:
                continue
            matters = count.said >= _LEAST_PART * roles[_ALL].said
            if not matters or count.share >= LEAST_SHARE:
                continue
            keys = [key for key in loss.lossy if key[0] == name and role in (_ALL, key[1])]
            ids = sorted({id for key in keys for id in loss.lossy[key]})[:_LOOKED_AT]
            why = loss_reason(
                [_row(texts, id) for id in ids],
                sources,
                chat_format,
                None if role == _ALL else role,
                exclude_tokens,
            )
            logger.warning(
                "%s: only %.0f%% of the characters%s became pairs (%s of %s). Most often %s.",
                name,
                100 * count.share,
                "" if role in (_ALL, _PLAIN) else f" of {role} messages",
                f"{count.paired:,}",
                f"{count.said:,}",
                why,
            )
    for key, (messages, lost_to) in loss.extras.items():
        if key == _PARTS:
            logger.warning(
                "What is no text (images, results of tools) in the contents of %s messages is not "
                "read.",
                f"{messages:,}",
            )
        elif lost_to:
            logger.warning(
                "%s in %s messages is not read: %s.",
                key,
                f"{messages:,}",
                "--chat_format plain leaves it out"
                if chat_format == "plain"
                else f"the chat template of {' and '.join(lost_to)} does not write it",
            )


def loss_reason(
    rows: Sequence[Text],
    sources: Sequence[SourceTokenizer],
    chat_format: str = "template",
    role: str | None = None,
    exclude_tokens: Sequence[int] = (),
) -> str:
    """Why most characters of the given texts (of one role in them) are in no pair."""
    reasons: Counter[str] = Counter()
    for row in rows:
        said = _said(row, Counter())
        shown = plain_text(row) if chat_format == "plain" and not isinstance(row, str) else row
        try:
            rendered = [render(shown, source) for source in sources]
        except TemplateError as error:
            why = f"a chat template refuses the conversation ({str(error).strip()})"
            reasons[why] += sum(map(_visible, (text for _, text in said)))
            continue
        position = 0
        for label, text in said:
            if role in (None, label):
                for source, part in zip(sources, rendered, strict=True):
                    lost = _outside(text, position, part)
                    reasons[f"the chat template of {source.name} leaves it out or alters it"] += (
                        lost
                    )
            position += len(text) + len(SEPARATOR)
        plain = SEPARATOR.join(text for _, text in said)
        reasons.update(_unpaired(plain, rendered, sources, exclude_tokens))
    (why, lost), *_ = reasons.most_common(1) or [("", 0)]
    return why if lost else "the texts are shorter than two tokens"


def _outside(text: str, position: int, part: Rendered) -> int:
    """Characters of what is said at `position` that the rendered text does not have."""
    if part.spans is None:
        return 0
    inside = 0
    for start, stop, place in part.spans:
        first, last = max(place, position), min(place + stop - start, position + len(text))
        inside += _visible(text[first - position : last - position]) if last > first else 0
    return _visible(text) - inside


def _unpaired(
    plain: str,
    rendered: Sequence[Rendered],
    sources: Sequence[SourceTokenizer],
    exclude_tokens: Sequence[int],
) -> Counter[str]:
    """Characters that the models read and no pair stands for, by reason."""
    ids = [source.encode([part.string]) for source, part in zip(sources, rendered, strict=True)]
    pairs = pair_tokens([plain], ids, sources, [[part] for part in rendered])
    if pairs.refused:
        return Counter({why: _visible(plain) for why in pairs.refused.values()})
    ends = pairs.ends
    if not len(ends):
        return Counter()
    begins = np.append(0, ends[:-1])
    for part in rendered:
        begins = np.maximum(begins, behind_gaps(part, plain, ends))
    lengths = ends - begins
    excluded = np.isin(pairs.tokens[0].ids[pairs.indices[0]], list(exclude_tokens))
    first = len(sources[0].prefix) == 0 or not excluded[0]
    return Counter(
        {
            "its tokens are among --exclude_tokens": int(lengths[excluded].sum()),
            "the texts are so short that a window's first token, which is in no pair, is much of "
            "them": int(lengths[0]) if first else 0,
            "the tokenizers end no token at the same place": _visible(plain[ends[-1] :]),
        }
    )


def rows_of(batch: Mapping[str, list]) -> Iterator[Text]:
    """The texts of a batch, each a string or messages."""
    empty = [None] * len(next(iter(batch.values())))
    texts, chats = batch.get("text", empty), batch.get("messages", empty)
    for text, messages in zip(texts, chats, strict=True):
        yield (text or "") if messages is None else messages


def _said(row: Text, found: Counter[str]) -> list[tuple[str, str]]:
    """Who says what in a text; counts in `found` what else the messages hold."""
    if isinstance(row, str):
        return [(_PLAIN, row)]
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


def _row(texts: Dataset, number: int) -> Text:
    row = texts.with_format(None)[number]
    return (row.get("text") or "") if row.get("messages") is None else row["messages"]


def _visible(text: str) -> int:
    return sum(not character.isspace() for character in text)
