"""What latents cause: tables of the audit's report, and what a latent's card has of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparsify_crosscoder.evaluation.latent_card import LatentCard
from sparsify_crosscoder.interventions.equivalence_found import Equivalences

from .sheets import Cell, Latent, Sheet, number


def with_equivalence(cards: Sequence[LatentCard], found: Equivalences | None) -> list[LatentCard]:
    """Cards of all latents, with what ablating some of them does to both models."""
    known = {} if found is None else {one.latent: one.columns() for one in found.latents}
    return [replace(card, **known.get(card.latent, {})) for card in cards]


def equivalence_sheet(found: Equivalences) -> Sheet:
    """The latents that were ablated, those that do most alike in both models first."""
    told = found.summary()
    rows: list[list[Cell]] = [
        [
            Latent(one.latent),
            one.correlation.text(2),
            number(one.null.value),
            one.gap.text(2, sign=True),
            number(one.cosine),
        ]
        for one in sorted(found.latents, key=lambda one: -one.correlation.value)
    ]
    return Sheet(
        "Do shared latents do the same in both models?",
        f"{told.get('same', 0)} of {told['latents']} do more alike than others' directions would. "
        "Each is ablated in both models where it is active; the correlation is of what that "
        "changes in the next words at the same pairs (95%, by text), the null as much of another "
        "latent's direction. Decoder cosines, by the map where there is one, say less.",
        ["latent", "correlation", "null", "gap", "decoder cosine"],
        rows,
    )


def patch_sheet(found: Mapping[str, Any], names: Sequence[str]) -> Sheet:
    """Which share of the divergence latents restore, in either model."""
    rows = [row for one in found["models"] for row in _rows(one, names)]
    return Sheet(
        "How much of what the models expect differently latents account for",
        "Latents are made to write in a model what they write in the other, on held-out texts: the "
        "KL divergence of next tokens that is left, and the share that is restored (95%, by text). "
        "The whole difference at the layer is the most that could be; what is left is elsewhere.",
        ["in", "patched", "KL left", "restored", "random clusters"],
        rows,
    )


def _rows(one: Mapping[str, Any], names: Sequence[str]) -> Iterator[list[Cell]]:
    host = names[int(one["source"])]
    yield [host, "nothing", _interval(one["kl"], 4), "-", "-"]
    if one["ceiling"]:
        yield [host, "the whole difference at this layer", *_restored(one["ceiling"]), "-"]
    for some in (*one["groups"], *one["halves"]):
        label = f"{some['name']} ({some['latents']:,})"
        yield [host, label, *_restored(some["restored"]), "-"]
    if one["gap"]:
        yield [host, "the upper half beside the lower", _interval(one["gap"], 4), "-", "-"]
    for entry in one["entries"]:
        random = ", ".join(f"{share:.1%}" for share in entry["random"]) or "-"
        label = f"difference {entry['rank']} ({entry['kind']})"
        yield [host, label, *_restored(entry["restored"]), random]


def _restored(one: Mapping[str, Any]) -> list[Cell]:
    low, value, high = (one["share"][key] for key in ("low", "value", "high"))
    return [_interval(one["kl"], 4), f"{value:.1%} ({low:.1%} to {high:.1%})"]


def _interval(one: Mapping[str, float], digits: int) -> str:
    low, value, high = (one[key] for key in ("low", "value", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
