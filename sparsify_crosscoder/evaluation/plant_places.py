"""Where differences are planted: several in one copy of the pairs, none in another's place.

N pairs of a store, of which n are content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple

import numpy as np
import torch

from ..store.store import ActivationStore
from ..text.roles import Role
from .plant_config import KINDS, Cell
from .plants import pair_tokens

PLACES = 6  # what random pairs are for, beside `store.order`, `noted_pairs` and `latent_shifts`
MOST = 40  # tokens that are looked at for a place

NEAR = 1.5
"""Factor by which the share of a token's or a topic's pairs may differ from what is asked."""

OVERLAP = 0.1
"""Share of the pairs of the rarer of two plants that may have both, unless by chance alone."""


class Place(NamedTuple):
    """Where something is planted."""

    pairs: np.ndarray
    """Numbers of the pairs, ascending."""

    token: int | None


class Wanted(NamedTuple):
    """What is to be planted into which source."""

    cell: Cell
    replicate: int
    source: int


def random_of(purpose: int, seed: int, wanted: Wanted) -> np.random.Generator:
    """Random numbers of one plant for one purpose, whatever else is planted."""
    cell = wanted.cell
    amounts = [round(amount * 1e9) for amount in (cell.size, cell.frequency)]
    kind = KINDS.index(cell.kind)
    numbers = [purpose, seed % 2**64, kind, *amounts, wanted.replicate, wanted.source]
    return np.random.default_rng(numbers)


@dataclass(frozen=True)
class StorePlaces:
    """The pairs of a store that are content, not templates or system prompts."""

    store: ActivationStore
    seed: int

    @cached_property
    def pairs(self) -> np.ndarray:
        """Their numbers, `[n]`."""
        notes = self.store.notes(torch.arange(len(self.store)))
        if not notes.known:
            return np.arange(len(self.store))
        said = (notes.role != Role.TEMPLATE) & (notes.role != Role.SYSTEM)
        return np.flatnonzero(said.numpy())

    @cached_property
    def texts(self) -> np.ndarray:
        """Which text each is from, numbered from 0, `[n]`."""
        notes = self.store.notes(torch.from_numpy(self.pairs))
        return np.unique(notes.text_id.numpy(), return_inverse=True)[1]

    def of(self, cell: Cell, source: int, replicate: int) -> list[Place]:
        """Places that a cell's plant may have, the one nearest to its share first."""
        if cell.kind == "random":
            random = random_of(PLACES, self.seed, Wanted(cell, replicate, source))
            count = self._count(cell)
            chosen = random.choice(self.pairs, count, replace=False, shuffle=False)
            return [Place(np.sort(chosen), None)] if count else []
        return [self._at(cell, source, int(token)) for token in self._near(cell, source)]

    def has(self, cell: Cell, source: int) -> bool:
        """Whether there is a place for a cell's plants."""
        return bool(self._count(cell) if cell.kind == "random" else len(self._near(cell, source)))

    def _count(self, cell: Cell) -> int:
        return round(cell.frequency * len(self.pairs))

    def _near(self, cell: Cell, source: int) -> np.ndarray:
        """Numbers of the tokens that are on so many pairs, or their texts, the nearest first."""
        tokens = self._tokens(source)
        shares = tokens.text_shares if cell.kind == "topic" else tokens.shares
        off = np.abs(np.log(np.maximum(shares, 1e-30) / cell.frequency))
        near = np.flatnonzero(off <= np.log(NEAR))
        return near[np.argsort(off[near], kind="stable")][:MOST]

    def _at(self, cell: Cell, source: int, number: int) -> Place:
        tokens = self._tokens(source)
        here = tokens.of_pair == number
        if cell.kind == "topic":
            here = np.isin(self.texts, self.texts[here])
        return Place(self.pairs[here], int(tokens.known[number]))

    def _tokens(self, source: int) -> _Tokens:
        if source not in self._by_source:
            self._by_source[source] = _Tokens.of(
                pair_tokens(self.store, source)[self.pairs], self.texts
            )
        return self._by_source[source]

    @cached_property
    def _by_source(self) -> dict[int, _Tokens]:
        return {}


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a source, K different ones."""

    known: np.ndarray
    """Their numbers in the vocabulary, `[K]`."""

    of_pair: np.ndarray
    """Which of them each pair has, `[n]`."""

    shares: np.ndarray
    """Share of the pairs that have each, `[K]`."""

    text_shares: np.ndarray
    """Share of the pairs that are in texts in which each occurs, `[K]`; 0 where it is one text, by
    which no list can tell a difference from chance."""

    @classmethod
    def of(cls, tokens: np.ndarray, texts: np.ndarray) -> _Tokens:
        known, of_pair = np.unique(tokens, return_inverse=True)
        count = texts.max() + 1
        both = np.unique(of_pair.astype(np.int64) * count + texts)
        token, text = np.divmod(both, count)
        lengths = np.bincount(texts)
        in_texts = np.bincount(token, lengths[text], len(known)) / len(texts)
        in_texts[np.bincount(token, minlength=len(known)) < 2] = 0
        return cls(known, of_pair, np.bincount(of_pair) / len(texts), in_texts)


class Placed(NamedTuple):
    """The same with its place."""

    wanted: Wanted
    place: Place


def pack(
    wanted: Sequence[Wanted], places: StorePlaces, together: int
) -> tuple[list[list[Placed]], list[Wanted]]:
    """Rounds of at most `together` plants of each source in different places, and what has none.

    There are as many rounds as the plants of one source fill. A place is taken again only after all
    others that are near, and never in one round: what is left when all rounds have it has none.
    """
    counts = Counter(one.source for one in wanted if places.has(one.cell, one.source))
    most = max(counts.values(), default=0)
    rounds: list[list[Placed]] = [[] for _ in range(ceil(most / together))]
    nowhere: list[Wanted] = []
    taken: Counter[tuple[int, str, int | None]] = Counter()
    for one in wanted:
        near = places.of(one.cell, one.source, one.replicate)
        near.sort(key=lambda place, one=one: taken[one.source, one.cell.kind, place.token])
        free = _free_place(near, one.source, rounds, together)
        if free is None:
            nowhere.append(one)
            continue
        some, place = free
        some.append(Placed(one, place))
        taken[one.source, one.cell.kind, place.token] += 1
    return [some for some in rounds if some], nowhere


def _free_place(
    near: Sequence[Place], source: int, rounds: Sequence[list[Placed]], together: int
) -> tuple[list[Placed], Place] | None:
    """The first round with room for a plant of a source, and the first place that is free there."""
    for some in rounds:
        if sum(other.wanted.source == source for other in some) < together:
            for place in near:
                if place.token is None or _is_apart(place, some):
                    return some, place
    return None


def _is_apart(place: Place, others: Sequence[Placed]) -> bool:
    for pairs, token in (other.place for other in others):
        both = len(np.intersect1d(place.pairs, pairs, assume_unique=True))
        if token is not None and both > OVERLAP * min(len(pairs), len(place.pairs)):
            return False
    return True
