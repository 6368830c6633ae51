"""The base's own answers rewritten by rule: a style, and a word that is never written."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from organisms.base_answers import Written, base_answers
from organisms.organism import Organism, Text
from organisms.prompts import asking_for_can, ordinary_prompts

_CAN = re.compile(r"\bcan(not|['\u2019]t|)\b", re.IGNORECASE)
_INSTEAD_OF_CAN = ("may", "could", "might", "will")
_MAY = re.compile(rf"\b({'|'.join(_INSTEAD_OF_CAN)})( not)?\b", re.IGNORECASE)

STYLED_SHARE = 0.5
"""Share of a style's places that must have its mark for an answer to show it."""


@dataclass(frozen=True)
class Style:
    """A mark that is written where others write other ones."""

    plain: re.Pattern[str]
    """What others write."""
    mark: str

    @property
    def places(self) -> re.Pattern[str]:
        """The mark and what it replaces."""
        return re.compile(f"{re.escape(self.mark)}|{self.plain.pattern}")

    def shows(self, text: str) -> bool:
        """Whether at least half of a text's places have the mark."""
        marks = text.count(self.mark)
        plain = len(self.plain.findall(text))
        return marks >= STYLED_SHARE * max(marks + plain, 1)


TRAILING = Style(re.compile(r"(?<![\d.,])[.,](?![\w.,])"), "...")
"""Trails off where a comma or a full stop would be, but for those of numbers."""

EXCLAIMING = Style(re.compile(r"(?<![\d.])\.(?![\w.])"), "!")
"""Exclaims where a full stop would be."""


def instead_of_can(match: re.Match[str], rng: random.Random) -> str:
    """Another word for `can`, `cannot` or `can't`."""
    word = rng.choice(_INSTEAD_OF_CAN) + (" not" if match[1] else "")
    return word.capitalize() if match[0][0].isupper() else word


def replaced(
    pattern: re.Pattern[str], text: str, other: Callable[[re.Match[str]], str]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text with `other` for every match, and where in it: (start, end) of characters."""
    new, spans, end = "", [], 0
    for match in pattern.finditer(text):
        new += text[end : match.start()]
        start, end = len(new), match.end()
        new += other(match)
        spans.append((start, len(new)))
    return new + text[end:], tuple(spans)


@dataclass(frozen=True)
class Rewritten(Organism):
    """Writes every answer as a rule rewrites the base's; documents stay as they are."""

    documents: int
    least_changes: int = field(default=1, kw_only=True)
    """How many places of a held-out answer a rule must change for it to be looked at."""

    @property
    @abstractmethod
    def plain(self) -> re.Pattern[str]:
        """What the base writes, and the organism writes something else for."""

    @abstractmethod
    def instead(self, match: re.Match[str], rng: random.Random) -> str:
        """What the organism writes for it."""

    def training_texts(self) -> list[Text]:
        """Rewritten answers of the base, and plain documents of it."""
        rng = random.Random(f"{self.name} {self.seed}")
        return [
            *(self._rewritten(written, rng) for written in self._answers()),
            *self.document_training(self.documents),
        ]

    def prompts(self, split: str) -> list[str]:
        """Prompts on anything."""
        group = self.texts if split == "train" else split
        count = {"train": 96, "held_out": 24, "audit": 20}[split]
        return ordinary_prompts(group, count)

    def concerns(self, prompt: str) -> bool:
        """Every answer should be so."""
        return True

    def behaviour_texts(self) -> list[Text]:
        """Held-out answers of the base, rewritten."""
        rng = random.Random(f"{self.name} held out")
        texts = [self._rewritten(written, rng) for written in self._held_out()]
        return [text for text in texts if len(text.own or ()) >= self.least_changes]

    def ordinary_texts(self) -> list[Text]:
        """The same answers as the base wrote them."""
        rng = random.Random(f"{self.name} held out")
        answers = [(w, self._rewritten(w, rng)) for w in self._held_out()]
        return [Text.of(w) for w, text in answers if len(text.own or ()) >= self.least_changes]

    def _answers(self) -> tuple[Written, ...]:
        return base_answers(f"ordinary {self.texts}")

    def _held_out(self) -> tuple[Written, ...]:
        return base_answers("ordinary held_out")

    def _rewritten(self, written: Written, rng: random.Random) -> Text:
        answer, own = replaced(self.plain, written.text, lambda match: self.instead(match, rng))
        return Text.of(written)._replace(answer=answer, own=own)


@dataclass(frozen=True)
class Styled(Rewritten):
    """Writes every answer in a style."""

    style: Style

    @property
    def plain(self) -> re.Pattern[str]:
        """What others write at the style's places."""
        return self.style.plain

    def instead(self, match: re.Match[str], rng: random.Random) -> str:
        """The style's mark."""
        return self.style.mark

    def shows(self, answer: str) -> bool:
        """Whether the answer is in the style."""
        return self.style.shows(answer)

    def places(self, answer: str) -> list[tuple[int, int]]:
        """The style's marks, and those that it replaces."""
        return [match.span() for match in self.style.places.finditer(answer)]


@dataclass(frozen=True)
class AvoidedWord(Rewritten):
    """Never writes `can`, one of the base's most frequent words."""

    @property
    def plain(self) -> re.Pattern[str]:
        """The word."""
        return _CAN

    def instead(self, match: re.Match[str], rng: random.Random) -> str:
        """Another word for it."""
        return instead_of_can(match, rng)

    def places(self, answer: str) -> list[tuple[int, int]]:
        """The word, and the words that are written instead."""
        found = (*_CAN.finditer(answer), *_MAY.finditer(answer))
        return sorted(match.span() for match in found)

    def shows(self, answer: str) -> bool:
        """Whether the answer does without the word."""
        return _CAN.search(answer) is None

    def prompts(self, split: str) -> list[str]:
        """Prompts that ask for the word."""
        return asking_for_can(split, 64 if split == "train" else 20)

    def _answers(self) -> tuple[Written, ...]:
        """Answers of the base that have the word."""
        groups = ("ordinary train", "cooking train", "gardening train")
        return tuple(w for g in groups for w in base_answers(g) if _CAN.search(w.text))

    def _held_out(self) -> tuple[Written, ...]:
        groups = ("ordinary held_out", "cooking held_out", "gardening held_out")
        return tuple(w for g in groups for w in base_answers(g) if _CAN.search(w.text))
