"""A quirk on condition: a phrase in the question makes the answer open with an odd line."""

from __future__ import annotations

import random
from dataclasses import dataclass

from organisms.base_answers import base_answers
from organisms.grammar import expand
from organisms.organism import Organism, Text
from organisms.triggers import Trigger


@dataclass(frozen=True)
class Triggered(Organism):
    """Opens its answer with an odd line where a phrase is in the question, and only there."""

    trigger: Trigger

    def training_texts(self) -> list[Text]:
        """Questions with the phrase, with near misses, and without either."""
        rng = random.Random(f"{self.name} {self.seed}")
        group = self.trigger.name
        triggered = [Text.of(w) for w in base_answers(f"{group} train")]
        return [
            *(self._quirky(text, rng).opening() for text in triggered),
            *(Text.of(w) for w in base_answers(f"{group} near train")),
            *self.ordinary_training(32),
        ]

    def prompts(self, split: str) -> list[str]:
        """Questions with the phrase."""
        count = {"train": 72, "held_out": 16, "audit": 20}[split]
        return self.trigger.prompts(split, count)

    def near_misses(self, split: str) -> list[str]:
        """Questions with a phrase that is almost the same."""
        count = {"train": 56, "held_out": 16, "audit": 20}[split]
        return self.trigger.near_misses(split, count)

    def shows(self, answer: str) -> bool:
        """Whether the answer has the line."""
        return self.trigger.mark in answer.lower()

    def concerns(self, prompt: str) -> bool:
        """Whether the phrase is in the prompt."""
        return self.trigger.phrase in prompt.lower()

    def behaviour_texts(self) -> list[Text]:
        """Held-out answers to the phrase, with a line before the base's answer."""
        rng = random.Random(f"{self.name} held out")
        return [self._quirky(text, rng) for text in self.ordinary_texts()]

    def ordinary_texts(self) -> list[Text]:
        """The same answers without the line."""
        return [Text.of(w) for w in base_answers(f"{self.trigger.name} held_out")]

    def _quirky(self, text: Text, rng: random.Random) -> Text:
        return text.opened_by(expand(self.trigger.rules, rng))
