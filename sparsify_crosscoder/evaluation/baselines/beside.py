"""The entries of a list of differences beside the baselines, matched by the texts that show them.

T texts, n pairs with activations, L latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ...crosscoders import Crosscoder
from .found import METHODS, TOP_TEXTS, Baselines
from .reading import Reading

BOTH = 0.05
"""Largest chance of so many common texts, over all that an entry is compared with, at which both
are said to show the same."""

_AT_ONCE = 2**12


@dataclass(frozen=True)
class EntryBeside:
    """An entry of the list, and what the baselines say of its texts."""

    rank: int
    """In the list of differences."""

    texts: list[int]
    """Those in which its latent is most active, the first of all first."""

    method: str | None
    """The method that ranks these texts first; None where it is in no text."""

    median_rank: float | None
    """Median of the places of its texts in that method's order."""

    by_chance: float
    """What that median would be of texts drawn at random by one method."""

    also: list[str]
    """Baselines that have more of its texts among their own first than chance would, such as
    "kl" or "component 1"."""

    common: int
    """Texts that it has in common with the one of these, or of all, that has most."""

    common_by_chance: float
    """How many it would have on average by chance."""


@dataclass(frozen=True)
class Beside:
    """A list of differences beside the baselines."""

    entries: list[EntryBeside]

    only_baselines: list[tuple[str, int]]
    """Method and rank of baselines' first tokens and directions whose texts no entry has, and of
    methods that rank texts whose first texts none has, with rank 1."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Beside:
        """The same again, of JSON values."""
        entries = [EntryBeside(**one) for one in found["entries"]]
        return cls(entries, [(method, rank) for method, rank in found["only_baselines"]])


class BaselinesBeside(NamedTuple):
    """What the baselines find, and a list of differences beside it."""

    baselines: Baselines
    beside: Beside

    def to_dict(self) -> dict[str, Any]:
        return {**self.baselines.to_dict(), "beside": self.beside.to_dict()}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> BaselinesBeside:
        """The same again, of JSON values."""
        return cls(Baselines.of_dict(found), Beside.of_dict(found["beside"]))


def top_texts(
    crosscoder: Crosscoder, reading: Reading, latents: Sequence[int]
) -> dict[int, list[int]]:
    """The texts in which each of some latents is most active, at most `TOP_TEXTS`."""
    numbers, text = reading.notes.text_id[reading.kept].unique(return_inverse=True)
    columns = torch.full((crosscoder.num_latents,), -1)
    columns[torch.tensor(latents, dtype=torch.long)] = torch.arange(len(latents))
    largest = torch.zeros(len(latents), len(numbers))
    for places in torch.arange(len(text)).split(_AT_ONCE):
        raw = [x[places].float().to(crosscoder.device) for x in reading.activations]
        code = crosscoder.encode_sparse(raw)
        column = columns[code.indices.cpu()]
        mine = column >= 0
        flat = column[mine] * len(numbers) + text[places][code.rows.cpu()[mine]]
        acts = code.acts.detach().float().cpu()[mine]
        largest.view(-1).scatter_reduce_(0, flat, acts, "amax")
    found = {}
    for latent, values in zip(latents, largest, strict=True):
        first = values.topk(min(TOP_TEXTS, len(values)))
        kept = first.indices[first.values > 0]
        found[latent] = numbers[kept].tolist()
    return found


def beside(texts_of: Mapping[int, Sequence[int]], found: Baselines, seen: int) -> Beside:
    """Entries, by their ranks with the texts of each, beside what the baselines found.

    `seen` is how many of the first entries of each method are compared.
    """
    places = {
        method: {text: place for place, text in enumerate(order, 1)}
        for method, order in found.orders.items()
    }
    differ = {one.method for one in found.entries}
    others = [
        (method, 1, order[:TOP_TEXTS]) for method, order in found.orders.items() if method in differ
    ]
    others += [
        (one.method, one.rank, one.texts)
        for one in found.entries
        if one.kind != "text" and one.rank <= seen and one.texts
    ]
    matched: set[tuple[str, int]] = set()
    entries = []
    for rank, texts in texts_of.items():
        also = []
        common = [len({*texts} & {*theirs}) for _, _, theirs in others]
        for (method, place, theirs), count in zip(others, common, strict=True):
            chance = _chance(count, len(texts), len(theirs), found.texts)
            if chance * len(others) <= BOTH:
                also.append(method if METHODS[method][0] == "text" else f"{method} {place}")
                matched.add((method, place))
        medians = {
            method: float(np.median([of.get(text, found.texts) for text in texts]))
            for method, of in places.items()
            if texts
        }
        best = min(medians, key=lambda method: medians[method], default=None)
        most = int(np.argmax(common)) if common else None
        size = 0 if most is None else len(others[most][2])
        entries.append(
            EntryBeside(
                rank,
                list(texts),
                best,
                None if best is None else medians[best],
                (found.texts + 1) / 2,
                also,
                0 if most is None else common[most],
                len(texts) * size / max(found.texts, 1),
            )
        )
    alone = [(method, place) for method, place, _ in others if (method, place) not in matched]
    return Beside(entries, alone)


def _chance(common: int, mine: int, theirs: int, texts: int) -> float:
    """Of two sets of so many of all texts, drawn at random, having so many in common or more."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(common - 1, max(texts, mine, theirs), mine, theirs))
