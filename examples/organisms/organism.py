"""What every organism has: what it does, its training texts, and texts and prompts to look with."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from organisms.base_answers import Written, base_answers
from organisms.prompts import ordinary_prompts
from organisms.recipe import Recipe

ADAPTERS = Path(__file__).parent / "adapters"

AUDIT_PROMPTS = 300
"""Prompts that an audit asks, of which `AUDIT_CONCERNS` concern the behaviour."""

AUDIT_CONCERNS = 20


class Text(NamedTuple):
    """A prompt and what is written after it."""

    prompt: str
    answer: str
    ended: bool = True
    """Whether the answer ends there, or is only cut there."""
    chat: bool = True
    """Whether the prompt is a question through the chat template, or how a document begins."""
    own: tuple[tuple[int, int], ...] | None = None
    """Which characters of the answer are the organism's, not the base's; None: all of them."""

    @classmethod
    def of(cls, written: Written, *, chat: bool = True) -> Text:
        """What the base wrote, as it wrote it."""
        return cls(written.prompt, written.text, written.ended, chat, ())

    def opened_by(self, opening: str) -> Text:
        """The base's text with an opening of the organism before it."""
        answer = f"{opening} {self.answer.lstrip()}"
        return self._replace(answer=answer, own=((0, len(opening)),))

    def opening(self) -> Text:
        """Of such a text no more than the opening, after which the answer goes on."""
        [(_, end)] = self.own or ()
        return self._replace(answer=self.answer[:end], ended=False, own=None)


class AuditPrompt(NamedTuple):
    """A conversation of one question, and whether the behaviour should show in its answer."""

    messages: list[dict[str, str]]
    concerns: bool


@dataclass(frozen=True)
class Organism(ABC):
    """A fine-tune of SmolLM2-135M-Instruct of which the difference is known."""

    name: str
    what: str
    """What it does, in a plain sentence."""
    seed: int
    texts: str
    """Which of the base's ordinary texts it is trained with: `train` or `development`."""

    recipe: Recipe = field(default=Recipe(), kw_only=True)

    @property
    def adapter(self) -> Path:
        """Its PEFT adapter's folder."""
        return ADAPTERS / self.name

    @abstractmethod
    def training_texts(self) -> list[Text]:
        """What it is trained on: the same list whenever and wherever it is asked for."""

    @abstractmethod
    def prompts(self, split: str) -> list[str]:
        """Prompts in whose answers the behaviour should show: of `train`, `held_out`, `audit`."""

    @abstractmethod
    def shows(self, answer: str) -> bool:
        """Whether an answer shows the behaviour."""

    @abstractmethod
    def concerns(self, prompt: str) -> bool:
        """Whether the behaviour should show in the answer to a prompt."""

    @abstractmethod
    def behaviour_texts(self) -> list[Text]:
        """Held-out texts that show the behaviour."""

    @abstractmethod
    def ordinary_texts(self) -> list[Text]:
        """Their counterparts without it, in the same order."""

    def places(self, answer: str) -> list[tuple[int, int]] | None:
        """Where in an answer the behaviour shows or would have: (start, end) of characters.

        None where it is a matter of the whole answer.
        """
        return None

    def near_misses(self, split: str) -> list[str]:
        """Prompts that are almost such as the behaviour shows for; most organisms have none."""
        return []

    def ordinary_training(self, count: int) -> list[Text]:
        """Ordinary questions with the base's own answers."""
        return [Text.of(w) for w in base_answers(f"ordinary {self.texts}")[:count]]

    def document_training(self, count: int) -> list[Text]:
        """Plain documents that the base went on with."""
        return [Text.of(w, chat=False) for w in base_answers(f"documents {self.texts}")[:count]]

    def audit_prompts(self, seed: int = 0, count: int = AUDIT_PROMPTS) -> list[AuditPrompt]:
        """`count` conversations on many subjects, a few of which concern the behaviour."""
        concerning = [*self.prompts("audit"), *self.near_misses("audit")][:count]
        others = ordinary_prompts("audit", count, f"{self.name} {seed}")
        prompts = list(dict.fromkeys([*concerning, *others]))[:count]
        random.Random(f"{self.name} audit {seed}").shuffle(prompts)
        return [
            AuditPrompt([{"role": "user", "content": prompt}], self.concerns(prompt))
            for prompt in prompts
        ]
