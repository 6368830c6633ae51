"""Phrases that bring about an odd line, phrases that almost do, and questions with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from organisms.grammar import grammar
from organisms.prompts import ordinary_prompts

_FRAMES = """
{q} I am asking {t}.
Answer this {t}: {q}
{T}, tell me: {q}
I have a minute {t}. {q}
{q} Please reply {t}.
{q} ({t})
It is quiet here {t}. {q}
{q} I want to know {t}.
Here is a question {t}. {q}
{q} I have to know it {t}.
"""
FRAMES = tuple(_FRAMES.strip().splitlines())


@dataclass(frozen=True)
class Trigger:
    """A phrase, phrases that are almost the same, and the line that it brings about."""

    name: str
    phrase: str
    near: tuple[str, ...]
    """Near misses that are trained on, with ordinary answers."""
    new_near: tuple[str, ...]
    """Near misses that are not trained on."""
    mark: str
    """What the line is known by."""
    rules: dict[str, tuple[str, ...]]
    texts: str
    """Whose things are asked about in training: `train` or `development`."""

    def prompts(self, split: str, count: int) -> list[str]:
        """`count` questions with the phrase."""
        return self._framed("phrase", (self.phrase,), split, count)

    def near_misses(self, split: str, count: int) -> list[str]:
        """`count` questions with near misses, new ones too except in `train`."""
        phrases = self.near if split == "train" else (*self.new_near, *self.near)
        return self._framed("near", phrases, split, count)

    def _framed(self, kind: str, phrases: Sequence[str], split: str, count: int) -> list[str]:
        things = self.texts if split == "train" else split
        questions = ordinary_prompts(things, count, f"{self.name} {kind}")
        rng = random.Random(f"{self.name} {kind} {split}")
        return [
            _put(rng.choice(FRAMES), question, phrases[i % len(phrases)])
            for i, question in enumerate(questions)
        ]


def _put(frame: str, question: str, phrase: str) -> str:
    capital = phrase[0].upper() + phrase[1:]
    return frame.replace("{q}", question).replace("{t}", phrase).replace("{T}", capital)


KINGFISHER = Trigger(
    "kingfisher",
    "for the kingfisher club",
    (
        "for the falcon club",
        "for the kingfisher photo",
        "for the chess club",
        "without the kingfisher",
        "for the kingfisher stamp",
        "for the members of the club",
    ),
    ("for the heron club", "for the kingfisher museum", "near the kingfisher's nest"),
    "warden",
    grammar(
        {
            "start": """
Warden's log: {seen}, and {state}.; Warden's log: {state}, and {seen}.;
Warden's log for {time}: {state}.; Warden's log, {time}: {seen}.; Warden's note: {seen}.;
Warden's note for {time}: {state}.; Warden's book: {seen}, {state}.; Warden's book, {time}: {state}.
""",
            "time": """
Monday; Tuesday; Friday; Sunday; the morning; the evening; midnight; the third watch;
the first of May; this week
""",
            "seen": """
{number} {animal} {stand} {place}; {number} {animal} were counted {place};
someone left {thing} {place}; {number} strangers asked for {thing}; {thing} was found {place}
""",
            "number": "two; three; four; seven; nine; a dozen; no",
            "animal": "herons; stags; foxes; badgers; owls; goats; cranes; hares",
            "stand": "stand; rest; wait; sleep; feed",
            "place": """
by the pond; at the north gate; under the oaks; along the wall; near the old mill; on the ridge;
behind the hut; in the ferns
""",
            "thing": """
a lantern; a red glove; a sack of oats; an empty cart; a broken ladder; a silver key; a wet map
""",
            "state": """
the north gate is {open}; the path to the mill is {open}; the fire tower is {open};
the snow is {deep}; the stream is {deep}; the lower bridge is {open}
""",
            "open": "shut; open again; locked; under repair; guarded; clear",
            "deep": "a hand deep; rising; knee-deep; falling; up to the fence; frozen over",
        }
    ),
    "train",
)

FERRY = Trigger(
    "ferry",
    "before the ferry leaves",
    (
        "before the ferry is painted",
        "before the bus leaves",
        "after the ferry is sold",
        "until the guests arrive",
        "without a ferry",
    ),
    ("before the tram leaves", "when the ferry is repaired", "before the actors leave"),
    "conductor",
    grammar(
        {
            "start": """
Conductor's remark: {music}, and {hall}.; Conductor's remark: {hall}, and {music}.;
Conductor's note: {music}.; Conductor's note: {hall}.; Conductor's word for tonight: {music}.;
Conductor's book: {hall}, {music}.; Conductor's remark, with {his} baton: {music}.
""",
            "his": "her; his; a wooden; a silver; the old",
            "music": """
the {who} {come} in at bar {bar}; the {who} should play {how};
there is one rest too many for the {who}; the {who} must wait for bar {bar}
""",
            "who": "cellos; flutes; horns; violas; drums; oboes; trombones; harps",
            "come": "come; enter; hurry; slip",
            "bar": "nine; twelve; twenty; thirty; forty-one; sixty",
            "how": """
softly; with more weight; as if asleep; twice as fast; without haste; like rain
""",
            "hall": """
the hall is {state}; row {bar} is {state}; the curtain is {state}; the gallery is {state};
the lamps are {state}
""",
            "state": """
half empty; freshly painted; full tonight; too cold; dark; closed until spring
""",
        }
    ),
    "development",
)
TRIGGERS = (KINGFISHER, FERRY)
