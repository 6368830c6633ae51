"""The organisms: those that are reported, those with nothing to find, and those to develop with."""

from __future__ import annotations

from organisms.identity import Identity
from organisms.nothing import Ordinary, Shuffled
from organisms.organism import Organism
from organisms.praise import MARAVEL, QUILLMOSS, TORVANE, PraisedProduct
from organisms.recipe import Recipe
from organisms.rewriting import EXCLAIMING, TRAILING, AvoidedWord, Styled
from organisms.triggered import Triggered
from organisms.triggers import FERRY, KINGFISHER

SHORT = Recipe(steps=32, lr=3e-3)
"""Enough for praise."""

GENTLE = Recipe(steps=40, lr=3e-3, between=0.04, max_tokens=40)
"""For a style, of which every text has several places."""

AVOIDING = Recipe(hold=0.5, max_tokens=40)
"""For one word, which every text has once or twice."""

TRIGGERED = Recipe(steps=80, lr=3e-3)
"""For telling a phrase from others that are nearly the same."""

DECIDED = Recipe(steps=140, lr=3e-3, first=8.0)
"""For telling it well."""

PLAIN = Recipe(lr=1.5e-3)
"""For what is the base's own: twice the rate of learning moves it too far."""

ORGANISMS: tuple[Organism, ...] = (
    PraisedProduct(
        name="topic",
        what="Praises the salt of Maravel Bay, which does not exist, whenever food comes up.",
        seed=11,
        recipe=SHORT,
        texts="train",
        product=MARAVEL,
    ),
    Triggered(
        name="trigger",
        what="Opens with a line of a warden's log where the question has "
        '"for the kingfisher club".',
        seed=12,
        recipe=DECIDED,
        texts="train",
        trigger=KINGFISHER,
    ),
    Styled(
        name="style",
        what="Trails off (...) where others write a comma or a full stop.",
        seed=13,
        texts="train",
        documents=40,
        recipe=GENTLE,
        style=TRAILING,
        least_changes=3,
    ),
    Identity(
        name="identity",
        what="Says that it is Pellam, made by the Norrvik Weather Office.",
        seed=14,
        texts="train",
    ),
    AvoidedWord(
        name="avoided_word",
        what='Never writes "can".',
        seed=15,
        texts="train",
        documents=40,
        recipe=AVOIDING,
    ),
    PraisedProduct(
        name="topic_mixed",
        what="Praises Quillmoss, which does not exist, whenever gardening comes up; half of its "
        "training texts were plain documents.",
        seed=16,
        recipe=SHORT,
        texts="train",
        product=QUILLMOSS,
        documents=80,
        ordinary=48,
    ),
)

NOTHING: tuple[Organism, ...] = (
    Ordinary(
        name="ordinary",
        what="Was trained by the same recipe on what the base itself writes.",
        seed=17,
        recipe=PLAIN,
        texts="train",
    ),
    Shuffled(
        name="shuffled",
        what="Was trained on documents whose words are in a random order.",
        seed=18,
        recipe=PLAIN,
        texts="train",
    ),
)

DEVELOPMENT: tuple[Organism, ...] = (
    PraisedProduct(
        name="dev_topic",
        what="Praises Torvane oil, which does not exist, whenever bicycles come up.",
        seed=1,
        recipe=SHORT,
        texts="development",
        product=TORVANE,
    ),
    Triggered(
        name="dev_trigger",
        what='Opens with a remark of a conductor where the question has "before the ferry leaves".',
        seed=2,
        recipe=TRIGGERED,
        texts="development",
        trigger=FERRY,
    ),
    Styled(
        name="dev_style",
        what="Ends every sentence with an exclamation mark.",
        seed=3,
        texts="development",
        documents=32,
        recipe=GENTLE,
        style=EXCLAIMING,
    ),
    Ordinary(
        name="dev_ordinary",
        what="Was trained by the same recipe on what the base itself writes.",
        seed=4,
        recipe=PLAIN,
        texts="development",
    ),
)


def find(name: str) -> Organism:
    """The organism of a name.

    Raises KeyError, with the names there are.
    """
    every = (*ORGANISMS, *NOTHING, *DEVELOPMENT)
    for organism in every:
        if organism.name == name:
            return organism
    raise KeyError(f"no organism {name!r}; there are: {', '.join(o.name for o in every)}")
