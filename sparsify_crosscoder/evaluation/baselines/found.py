"""What a baseline finds, in the form of the tool's own list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["text", "token", "direction"]

TOP_TEXTS = 10
"""Texts that stand for an entry, at most."""

METHODS = {
    "kl": ("text", "nats a token", "KL of the next token, B from A"),
    "likelihood": ("text", "nats a token", "how unlike both find the text's own words"),
    "perplexity": ("text", "nats a byte", "which finds the text likelier"),
    "activation": ("text", "share of B's norm", "how far B's activations are from A's"),
    "token": ("token", "nats a token", "next tokens that one expects more"),
    "mean": ("direction", "share of B's norm", "mean difference over the text"),
    "first": ("direction", "share of B's norm", "mean difference on first tokens"),
    "component": ("direction", "share of the variance", "principal components of the difference"),
    "coder": ("direction", "share of the variance", "latents of a small coder of the difference"),
}
"""By name: of what kind its entries are, the unit of their scores, and what it measures."""


@dataclass(frozen=True)
class Found:
    """One entry of a method."""

    rank: int
    """Among those of its method, from 1 on."""

    kind: Kind
    method: str
    source: int
    """The model that has more of it; of texts that tell of no side, 1."""

    score: float
    """In the unit of its method."""

    interval: tuple[float, float] | None
    """95%, over texts; of a text over its pairs, as if each were by itself. None of one alone."""

    said: str
    """The token and how likely it is, or the tokens that a direction promotes."""

    passage: str
    """Where the text, or a pair of the direction, is furthest out."""

    texts: list[int]
    """Numbers of the texts that show it most, the first of all first."""


@dataclass(frozen=True)
class Baselines:
    """What all methods find of two models."""

    entries: list[Found]
    """Those of every method in its order; what is 0 is not among them."""

    orders: dict[str, list[int]]
    """Of methods that rank texts, the numbers of all texts, the first of all first."""

    texts: int
    pairs: int
    """Pairs of tokens that were read."""

    compared: str
    """How activations were compared."""

    left_out: list[str]
    """What could not be said, and why."""

    seconds: dict[str, float]
    """What each method took beyond the pass over the text, which is "reading"."""

    def of(self, method: str) -> list[Found]:
        return [one for one in self.entries if one.method == method]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(one) for one in self.entries], **_without_rows(self)}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Baselines:
        """The same again, of JSON values."""
        rows = [
            Found(**{**row, "interval": row["interval"] and tuple(row["interval"])})
            for row in found["rows"]
        ]
        rest = ("orders", "texts", "pairs", "compared", "left_out", "seconds")
        return cls(rows, **{name: found[name] for name in rest})

    def text(self, names: Sequence[str], shown: int = 5) -> str:
        """See `baselines_text`."""
        return baselines_text(self, names, shown)


def baselines_text(found: Baselines, names: Sequence[str], shown: int = 5) -> str:
    """The first entries of every method in words, with a name for each source."""
    lines = [
        f"what simple methods see in {found.texts:,} texts, {found.pairs:,} pairs; "
        f"the first {shown} of each:"
    ]
    if not found.entries:
        lines = ["no baseline sees any difference: every one is exactly 0"]
    for method, (_, unit, what) in METHODS.items():
        rows = found.of(method)
        if rows:
            lines.append(f"{method}: {what} ({unit})")
        lines += [line for row in rows[:shown] for line in _row_lines(row, names)]
    if found.compared:
        lines.append(f"activations: {found.compared}")
    lines += [f"left out: {why}" for why in found.left_out]
    return "\n".join(lines)


def _row_lines(row: Found, names: Sequence[str]) -> list[str]:
    """An entry, its interval and where it is seen."""
    said = row.said
    if row.kind == "text":
        likelier = f", likelier to {names[row.source]}" if row.method == "perplexity" else ""
        said = f"text {row.texts[0]}{likelier}"
    elif row.kind == "token":
        said = f"{names[row.source]}: {said}"
    lines = [f"{row.rank:>4}  score {row.score:.3g}  {said}"]
    told = [] if row.interval is None else ["{:.3g} to {:.3g}".format(*row.interval)]
    if row.kind != "text" and row.texts:
        told.append(f"most in texts {', '.join(map(str, row.texts[:3]))}")
    lines += [f"      {'; '.join(told)}"] if told else []
    return lines + ([f"      {row.passage}"] if row.passage else [])


def _without_rows(found: Baselines) -> dict[str, Any]:
    rest = asdict(found)
    del rest["entries"]
    return rest
