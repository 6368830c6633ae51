"""What ablating shared latents does to two models, as numbers and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..intervals import Interval


@dataclass(frozen=True)
class Equivalence:
    """What ablating one shared latent does to both models at the same pairs."""

    latent: int
    relative_decoder_norm: float
    """Share of source 0 in its decoder norms."""

    cosine: float | None
    """Of its two decoders, the first carried over by the map; None without one."""

    pairs: int
    """At which it was looked at."""

    correlation: Interval
    """Of both models' changes of log-probability over the likeliest words that both know, mean over
    the pairs, 95% over texts; as all that follow."""

    null: Interval
    """The same where as much of other latents' directions is taken from the second model."""

    gap: Interval
    """By how much the correlation is larger than that."""

    kl: tuple[Interval, Interval]
    """How far each model's next token is from what it was, nats a pair."""

    @property
    def same(self) -> bool:
        """Whether the latent does more alike in both models than others would."""
        return self.gap.low > 0

    def columns(self) -> dict[str, float | None]:
        """Those of a latent's card."""
        return {
            "equivalence": self.correlation.value,
            "equivalence_low": self.correlation.low,
            "equivalence_high": self.correlation.high,
            "equivalence_null": self.null.value,
            "equivalence_gap": self.gap.value,
            "equivalence_gap_low": self.gap.low,
            "decoder_cosine": self.cosine,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {name: getattr(self, name)._asdict() for name in ("correlation", "null", "gap")}
        kl = [one._asdict() for one in self.kl]
        return {**vars(self), **values, "kl": kl, "same": self.same}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Equivalence:
        """The same again, of JSON values."""
        first, second = (Interval(**one) for one in found["kl"])
        names = ("correlation", "null", "gap")
        correlation, null, gap = (Interval(**found[name]) for name in names)
        return cls(
            found["latent"],
            found["relative_decoder_norm"],
            found["cosine"],
            found["pairs"],
            correlation,
            null,
            gap,
            (first, second),
        )


@dataclass(frozen=True)
class Equivalences:
    """Shared latents of a run, ablated one at a time in both models."""

    names: list[str]
    texts: int
    held_out: bool
    """Whether the run did not train on these texts."""

    latents: list[Equivalence]
    left_out: dict[int, str]
    """Latents that were asked for and could not be looked at, and why."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; latents that were left out by their numbers as text."""
        return {
            "names": self.names,
            "texts": self.texts,
            "held_out": self.held_out,
            "rows": [one.to_dict() for one in self.latents],
            "left_out": {str(latent): why for latent, why in self.left_out.items()},
            "summary": self.summary(),
        }

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Equivalences:
        """The same again, of JSON values."""
        rows = [Equivalence.of_dict(one) for one in found["rows"]]
        left_out = {int(latent): why for latent, why in found["left_out"].items()}
        return cls(found["names"], found["texts"], found["held_out"], rows, left_out)

    def summary(self) -> dict[str, float | int | None]:
        """Medians over the latents, how many do the same in both models, and how well decoder
        cosines rank them by it (Spearman); None of what is not known."""
        if not self.latents:
            return {"latents": 0}
        cosines = [one.cosine for one in self.latents if one.cosine is not None]
        causes = [one.correlation.value for one in self.latents if one.cosine is not None]
        known = len(cosines) > 2 and len({*cosines}) > 1 and len({*causes}) > 1
        return {
            "latents": len(self.latents),
            "same": sum(one.same for one in self.latents),
            "median_correlation": float(np.median([one.correlation.value for one in self.latents])),
            "median_null": float(np.median([one.null.value for one in self.latents])),
            "median_cosine": float(np.median(cosines)) if cosines else None,
            "rank_correlation": _rank_correlation(cosines, causes) if known else None,
        }

    def text(self) -> str:
        """A line for each latent, those that do most alike first."""
        whose = "held out by the run" if self.held_out else "that the run trained on"
        first, second = self.names[:2]
        lines = [
            f"{self.texts} texts {whose}. Each latent is ablated in {first} and in {second} where "
            "it is active; the correlation is of what that changes in both at the same pairs, the "
            f"null of others' directions, as much of them, taken from {second}.",
            f"{'latent':>7}  {'correlation':<22} {'null':<8} {'gap':<24} {'cosine':<8}KL of each",
        ]
        for one in sorted(self.latents, key=lambda one: -one.correlation.value):
            cosine = "-" if one.cosine is None else f"{one.cosine:.2f}"
            kl = " and ".join(f"{part.value:.3f}" for part in one.kl)
            lines.append(
                f"{one.latent:>7}  {one.correlation.text(2):<22} {one.null.value:<8.2f} "
                f"{one.gap.text(2, sign=True):<24} {cosine:<8}{kl}"
            )
        lines += [f"{latent:>7}  not looked at: {why}" for latent, why in self.left_out.items()]
        return "\n".join([*lines, *self._last_line()])

    def _last_line(self) -> list[str]:
        told = self.summary()
        if not self.latents:
            return []
        line = (
            f"{told['same']} of {told['latents']} do more alike in both than others would; median "
            f"correlation {told['median_correlation']:.2f}, null {told['median_null']:.2f}"
        )
        if told["median_cosine"] is not None:
            line += f", decoder cosine {told['median_cosine']:.2f}"
        if told["rank_correlation"] is not None:
            line += f"; cosines rank latents by it with {told['rank_correlation']:.2f}"
        return [line + "."]


def _rank_correlation(first: list[float], second: list[float]) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
