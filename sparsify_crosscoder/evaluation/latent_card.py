"""What is known of one latent: each number with how sure it is, and what nobody looked at.

A card is filled by whoever looked: a run's list of differences and its filter, a comparison of
several runs, an audit. Its fields are columns of an audit's features.parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

UNKNOWN = "not known"


class CardLine(NamedTuple):
    """One thing that is known of a latent, or that is not."""

    what: str
    said: str


@dataclass(frozen=True)
class LatentCard:
    """A latent; None is not known, or, of what is in no list, none."""

    latent: int
    source: int | None = None
    """The source that it is exclusive to by its norm; None if it is shared."""

    relative_decoder_norm: float | None = None
    """Share of source 0 in its decoder norms."""

    pairs_present: int | None = None
    """Pairs on which it fires ..."""

    pairs_read: int | None = None
    """... of so many."""

    presence_error: float | None = None
    """One standard error of the share of these, over folds of whole texts."""

    filter_verdict: str | None = None
    filter_reason: str | None = None
    filter_score: float | None = None
    filter_score_low: float | None = None
    filter_score_high: float | None = None
    """Ends of its 95% interval, as of all that follow."""

    scaling_error_ratio: float | None = None
    """How much of it the other models' reconstruction errors have, as a multiple of its own."""

    scaling_error_low: float | None = None
    scaling_error_high: float | None = None
    scaling_reconstruction_ratio: float | None = None
    """The same of their reconstructions."""

    scaling_reconstruction_low: float | None = None
    scaling_reconstruction_high: float | None = None
    listed: bool | None = None
    """Whether it is in the list of differences; None if there was no list."""

    difference: int | None = None
    """Rank of the entry that it is in."""

    difference_kind: str | None = None
    difference_score: float | None = None
    q_value: float | None = None
    """Share of the list down to that entry that is false by the nulls."""

    q_low: float | None = None
    q_high: float | None = None
    found_by_runs: int | None = None
    """Runs that find the difference which it is kept for ..."""

    compared_runs: int | None = None
    """... of so many."""

    verified: bool | None = None
    """Whether its entry was found to cause what its model answers otherwise."""

    verification: str | None = None
    """What was found, in words."""

    effect: float | None = None
    """Change of its own model's next token where it is steered with it (KL, nats)."""

    effect_p: float | None = None
    """Chance of so large an effect among random directions as long as it, exact."""

    likeness: float | None = None
    """How like what it does to its own model is to what its image does to the other, -1 to 1."""

    exclusivity: float | None = None
    """The same by a judge, 1 to 5: how little of its effect carries over."""

    equivalence: float | None = None
    """Correlation of what ablating it does to both models at the same pairs ..."""

    equivalence_low: float | None = None
    equivalence_high: float | None = None
    equivalence_null: float | None = None
    """... where as much of another latent's direction is taken from the second instead."""

    equivalence_gap: float | None = None
    equivalence_gap_low: float | None = None
    """Lower end of the interval of the difference of both."""

    decoder_cosine: float | None = None
    """Of its two decoders, by the map between the models where they share no basis."""

    detection_score: float | None = None
    """Share of 20 passages, the ten strongest and ten where it is silent, that a judge tells apart
    by its explanation, which was written from the former."""

    detection_held_out: float | None = None
    """The same with the passages of ranks 11 to 20, which the explanation has not seen."""

    detection_quantiles: float | None = None
    """The same with ten passages from all the weaker ones."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> LatentCard:
        """From values by name, such as a row of features.parquet; what is missing is not known."""
        return cls(**{one.name: row[one.name] for one in fields(cls) if one.name in row})

    @property
    def presence(self) -> float | None:
        """Share of the pairs on which it fires."""
        if self.pairs_present is None or not self.pairs_read:
            return None
        return self.pairs_present / self.pairs_read

    def lines(self) -> list[CardLine]:
        """All of it in words, what is not known as well."""
        ratios = ("scaling_error", "scaling_reconstruction")
        return [
            CardLine("fires", self._presence()),
            CardLine("filter", self._filter()),
            *(
                CardLine(f"latent scaling, {one.removeprefix('scaling_')}", self._ratio(one))
                for one in ratios
            ),
            CardLine("list of differences", self._entry()),
            CardLine("q", self._q()),
            CardLine("other runs", self._runs()),
            CardLine("cause", self._cause()),
            CardLine("steering", self._steering()),
            CardLine("in both models", self._both()),
            CardLine("detection", self._detection()),
        ]

    def text(self) -> str:
        """The same for a terminal."""
        return "\n".join(f"{what}: {said}" for what, said in self.lines())

    def _presence(self) -> str:
        if self.presence is None:
            return UNKNOWN
        error = "" if self.presence_error is None else f" ± {1.96 * self.presence_error:.3%}"
        pairs = f"{self.pairs_present:,} of {self.pairs_read:,} pairs"
        return f"on {pairs} ({self.presence:.3%}{error})"

    def _filter(self) -> str:
        if self.filter_verdict is None:
            return UNKNOWN
        verdict = self.filter_verdict.replace("_", " ")
        score = _with_ends(self.filter_score, self.filter_score_low, self.filter_score_high)
        return f"{verdict}, score {score}"

    def _ratio(self, name: str) -> str:
        value, low, high = (getattr(self, f"{name}_{end}") for end in ("ratio", "low", "high"))
        if value is None:
            return UNKNOWN
        return f"{_with_ends(value, low, high)} times its own in the other model"

    def _entry(self) -> str:
        if self.difference is None:
            return "in none of its entries" if self.listed is False else UNKNOWN
        kind = "" if self.difference_kind is None else f" ({self.difference_kind})"
        score = "" if self.difference_score is None else f", score {self.difference_score:.2f}"
        return f"entry {self.difference}{kind}{score}"

    def _q(self) -> str:
        return (
            UNKNOWN if self.q_value is None else _with_ends(self.q_value, self.q_low, self.q_high)
        )

    def _runs(self) -> str:
        if self.found_by_runs is None:
            return UNKNOWN
        return f"found by {self.found_by_runs} of {self.compared_runs} runs"

    def _cause(self) -> str:
        if self.verified is None:
            return UNKNOWN
        if self.verification:
            return self.verification
        return "verified" if self.verified else "not verified"

    def _steering(self) -> str:
        told = []
        if self.effect is not None:
            told.append(f"moves its model's next token by {self.effect:.2f} nats")
        if self.effect_p is not None:
            told.append(f"p = {self.effect_p:.2g} among random directions")
        if self.likeness is not None:
            told.append(f"likeness {self.likeness:.2f} of what both models do")
        if self.exclusivity is not None:
            told.append(f"exclusivity {self.exclusivity:.1f} of 5")
        return "; ".join(told) or UNKNOWN

    def _both(self) -> str:
        if self.equivalence is None:
            return UNKNOWN
        value = _with_ends(self.equivalence, self.equivalence_low, self.equivalence_high)
        told = [f"ablating it does to both what correlates by {value}"]
        if self.equivalence_null is not None:
            told.append(f"{self.equivalence_null:.2f} with another's direction in the second")
        if self.decoder_cosine is not None:
            told.append(f"decoder cosine {self.decoder_cosine:.2f}")
        return "; ".join(told)

    def _detection(self) -> str:
        known = [
            (self.detection_score, "on the passages that its explanation was written from"),
            (self.detection_held_out, "on ranks 11 to 20"),
            (self.detection_quantiles, "on weaker ones"),
        ]
        if all(score is None for score, _ in known):
            return UNKNOWN
        return "; ".join(
            f"{UNKNOWN if score is None else f'{score:.2f}'} {where}" for score, where in known
        )


def _with_ends(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
