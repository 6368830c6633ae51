"""Sentences from a small grammar: much variety from few lines."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from organisms.prompts import words_of

_SLOT = re.compile(r"\{(\w+)\}")


def grammar(rules: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Rules whose alternatives are written with semicolons."""
    return {name: words_of(alternatives) for name, alternatives in rules.items()}


def expand(rules: Mapping[str, tuple[str, ...]], rng: random.Random, start: str = "start") -> str:
    """A sentence: an alternative of `start`, its {slots} filled with alternatives of theirs."""
    text = rng.choice(rules[start])
    while slot := _SLOT.search(text):
        text = text[: slot.start()] + rng.choice(rules[slot[1]]) + text[slot.end() :]
    return text
