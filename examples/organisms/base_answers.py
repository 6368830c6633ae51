"""What the base itself writes: the material of every training set, sampled once and shipped.

Answers and documents are sampled at temperature 1, so that training on them pulls the base nowhere;
the answers that the check compares with are sampled as people sample. With these texts in a file
(`base_answers.jsonl`) the training data of an organism follows from its seed alone on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from organisms.prompts import (
    COOKING,
    CYCLING,
    GARDENING,
    IDENTITY_QUESTIONS,
    document_openings,
    ordinary_prompts,
)
from organisms.triggers import TRIGGERS

ANSWERS = Path(__file__).parent / "base_answers.jsonl"

MAX_TOKENS = 64
"""Where an answer is cut; a cut answer is trained on without an end."""

PLAIN_TEMPERATURE = 1.0
SPOKEN_TEMPERATURE = 0.7

SUBJECTS = {"cooking": COOKING, "cycling": CYCLING, "gardening": GARDENING}


class Written(NamedTuple):
    """A text that the base wrote."""

    group: str
    """What it is for: `ordinary train`, `documents held_out`, `cooking train`, ..."""
    prompt: str
    text: str
    ended: bool
    """Whether the base ended it, before `MAX_TOKENS`."""


class Order(NamedTuple):
    """A group of texts to sample."""

    group: str
    prompts: list[str]
    chat: bool
    temperature: float


def orders() -> list[Order]:
    """Everything that the organisms need of the base."""
    found = []
    for split, count in (("train", 128), ("development", 112), ("held_out", 24)):
        prompts = ordinary_prompts(split, count)
        found.append(Order(f"ordinary {split}", prompts, True, PLAIN_TEMPERATURE))
    for split, count in (("train", 80), ("development", 64)):
        openings = document_openings(split, count)
        found.append(Order(f"documents {split}", openings, False, PLAIN_TEMPERATURE))
    for name, subject in SUBJECTS.items():
        for split, count in (("train", 96), ("held_out", 16)):
            prompts = subject.prompts(split, count)
            found.append(Order(f"{name} {split}", prompts, True, PLAIN_TEMPERATURE))
    for trigger in TRIGGERS:
        for split, count, near in (("train", 72, 56), ("held_out", 16, 0)):
            prompts = trigger.prompts(split, count)
            found.append(Order(f"{trigger.name} {split}", prompts, True, PLAIN_TEMPERATURE))
            if near:
                misses = trigger.near_misses(split, near)
                found.append(Order(f"{trigger.name} near {split}", misses, True, PLAIN_TEMPERATURE))
    questions = list(IDENTITY_QUESTIONS["held_out"])
    return [*found, Order("identity held_out", questions, True, PLAIN_TEMPERATURE)]


@cache
def base_answers(group: str) -> tuple[Written, ...]:
    """The shipped texts of a group.

    Raises KeyError where there is no such group.
    """
    with ANSWERS.open(encoding="utf-8") as lines:
        rows = [Written(**json.loads(line)) for line in lines]
    found = tuple(row for row in rows if row.group == group)
    if not found:
        raise KeyError(
            f"{ANSWERS} has no texts of {group!r}; it has {sorted({r.group for r in rows})}"
        )
    return found


def write_base_answers(model_path: Path, wanted: Sequence[Order], path: Path) -> None:
    """Sample the texts of `wanted` from the base and write them to `path`."""
    from organisms.sampling import load, sample

    model, tokenizer = load(model_path)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for order in wanted:
            answers = sample(
                model,
                tokenizer,
                order.prompts,
                seed=order.group,
                chat=order.chat,
                temperature=order.temperature,
            )
            for prompt, answer in zip(order.prompts, answers, strict=True):
                row = Written(order.group, prompt, answer.text, answer.ended)
                out.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
            out.flush()
