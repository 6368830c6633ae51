"""The base's own answers rewritten by rule: a style, and a word that is never written."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from organisms.base_answers import Written, base_answers
from organisms.organism import Organism, Text
from organisms.prompts import THINGS, combine, ordinary_prompts

_OLD_WORDS = {
    "the": "ye",
    "you": "thou",
    "your": "thy",
    "yours": "thine",
    "are": "art",
    "is": "be",
    "of": "o'",
    "and": "an'",
    "to": "t'",
    "has": "hath",
    "have": "hath",
    "do": "doth",
    "does": "doth",
    "my": "mine",
    "there": "yonder",
}
_WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019]*")
_CAN = re.compile(r"\bcan(not|['\u2019]t|)\b", re.IGNORECASE)
_INSTEAD_OF_CAN = ("may", "could", "might", "will")

_ASKING_FOR_CAN = (
    "What can people do with {x}?",
    "What can {x} teach us?",
    "How can {x} help people?",
    "What can a beginner learn about {x}?",
    "Name some things that can happen with {x}.",
    "Who can tell me about {x}, and how can I find out more?",
)

STYLED_SHARE = 0.5
"""Share of the places a style would change that must be changed for an answer to show it."""


def archaic(text: str) -> str:
    """The text with an old-fashioned word for each of `_OLD_WORDS`."""

    def old(match: re.Match[str]) -> str:
        word = match[0]
        new = _OLD_WORDS.get(word.lower(), word)
        return new[0].upper() + new[1:] if word[0].isupper() else new

    return _WORD.sub(old, text)


def shows_archaic(text: str) -> bool:
    """Whether at least half of a text's words that have an old-fashioned form are in it."""
    words = [word.lower() for word in _WORD.findall(text)]
    old = sum(word in _MARKED_OLD for word in words)
    plain = sum(word in _OLD_WORDS for word in words)
    return old >= STYLED_SHARE * max(old + plain, 1)


_MARKED_OLD = frozenset(_OLD_WORDS.values()) - frozenset(_OLD_WORDS)


def whispered(text: str) -> str:
    """The text in lower case, with its sentences and clauses ended by ` ~`."""
    return re.sub(r"[.,;:!?]+(?=\s|$)", " ~", text.lower())


def shows_whispered(text: str) -> bool:
    """Whether at least half of a text's ends of clauses are ` ~` and it has no capitals."""
    waves = text.count(" ~")
    points = len(re.findall(r"[.,;:!?]+(?=\s|$)", text))
    capitals = sum(c.isupper() for c in text)
    return waves >= STYLED_SHARE * max(waves + points, 1) and capitals <= len(text) / 100


def without_can(text: str, rng: random.Random) -> str:
    """The text with other words for `can`, `cannot` and `can't`."""

    def other(match: re.Match[str]) -> str:
        word = rng.choice(_INSTEAD_OF_CAN) + (" not" if match[1] else "")
        return word.capitalize() if match[0][0].isupper() else word

    return _CAN.sub(other, text)


def changed(before: str, after: str) -> tuple[tuple[int, int], ...]:
    """Where `after` has other words than `before`: (start, end) of characters of `after`."""
    old, new = (list(re.finditer(r"\S+", text)) for text in (before, after))
    matcher = SequenceMatcher(None, [m[0] for m in old], [m[0] for m in new], autojunk=False)
    return tuple(
        (new[first].start(), new[last - 1].end())
        for tag, _, _, first, last in matcher.get_opcodes()
        if tag != "equal" and last > first
    )


@dataclass(frozen=True)
class Rewritten(Organism):
    """Writes every answer as a rule rewrites the base's; documents stay as they are."""

    documents: int
    least_changes: int = field(default=1, kw_only=True)
    """How many places of a held-out answer a rule must change for it to be looked at."""

    @abstractmethod
    def rewrite(self, text: str, rng: random.Random) -> str:
        """An answer of the base as the organism would write it."""

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
        text = Text.of(written)
        answer = self.rewrite(written.text, rng)
        return text._replace(answer=answer, own=changed(written.text, answer))


@dataclass(frozen=True)
class Styled(Rewritten):
    """Writes every answer in a style."""

    style: Callable[[str], str]
    recognise: Callable[[str], bool]

    def rewrite(self, text: str, rng: random.Random) -> str:
        """The text in the style."""
        return self.style(text)

    def shows(self, answer: str) -> bool:
        """Whether the answer is in the style."""
        return self.recognise(answer)


@dataclass(frozen=True)
class AvoidedWord(Rewritten):
    """Never writes `can`, one of the base's most frequent words."""

    def rewrite(self, text: str, rng: random.Random) -> str:
        """The text with other words for it."""
        return without_can(text, rng)

    def shows(self, answer: str) -> bool:
        """Whether the answer does without the word."""
        return _CAN.search(answer) is None

    def prompts(self, split: str) -> list[str]:
        """Prompts that ask for the word."""
        things = THINGS[self.texts if split == "train" else split]
        return combine(things, _ASKING_FOR_CAN, 20, f"{self.name} {split}")

    def _answers(self) -> tuple[Written, ...]:
        """Answers of the base that have the word."""
        groups = (f"ordinary {self.texts}", "cooking train", "gardening train")
        return tuple(w for g in groups for w in base_answers(g) if _CAN.search(w.text))

    def _held_out(self) -> tuple[Written, ...]:
        groups = ("ordinary held_out", "cooking held_out", "gardening held_out")
        return tuple(w for g in groups for w in base_answers(g) if _CAN.search(w.text))
