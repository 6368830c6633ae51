"""Telling exclusive latents from those that stand for something the other models have as well.

Two tests, neither of which needs the other models' text or tokens:

predictability  A latent is linearly predicted, once from the activations of the other sources and
                once from its own. If the others do about as well, they carry the same information.
shadow          Each source is linearly predicted from the others. What is left of the other
                sources should not move with a latent that stands for something of its own source,
                where it is present and does not just fire a little. This guards residual DFCs,
                whose encoder already removes what is predictable.

L latents, S sources, D the sum of their widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..crosscoders.rdfc import ridge_regression
from ..scorability import FILTER_PAIRS, MIN_FIRINGS, MIN_OWN, pairs_needed, too_rare
from ..store.stream import ActivationStream
from .latent_moments import (
    DENSE_FRACTION,
    LatentMoments,
    bytes_needed,
    collect,
    predicted_share,
)

EXCLUSIVE_NORM = 0.8  # equation 12
ERRORS = 3  # standard errors that are no evidence of a shadow


class Verdict(IntEnum):
    """What the filter says of a latent."""

    KEPT = 0
    PREDICTABLE = 1
    SHADOW = 2
    TOO_RARE = 3
    NOT_LINEAR = 4

    @property
    def reason(self) -> str:
        return _REASONS[self]

    @property
    def scorable(self) -> bool:
        return self not in (Verdict.TOO_RARE, Verdict.NOT_LINEAR)


_REASONS = {
    Verdict.KEPT: "its own source tells its activation, the others do not",
    Verdict.PREDICTABLE: "the other sources predict its activation about as well as its own",
    Verdict.SHADOW: "it moves what the other sources have of their own",
    Verdict.TOO_RARE: "not scorable: it fires on too few pairs",
    Verdict.NOT_LINEAR: "not scorable: even its own source does not predict its activation",
}


@dataclass
class FilterConfig:
    """Thresholds of the filter."""

    predictability: float = 0.5
    """Largest R2 from the other sources of a latent that is kept, as a multiple of that from its
    own source."""

    shadow: float = 0.15
    """Largest effect on what is left of the other sources of a latent that is kept, as a multiple
    of its effect on what is left of its own."""

    min_own: float = MIN_OWN
    """Least R2 from its own source at which a latent is scorable."""

    min_firings: int = MIN_FIRINGS
    """Least number of pairs on which a scorable latent fires."""

    ridge: float = 1e-3
    """Ridge penalty of all regressions, as a multiple of the activations' mean variance."""

    pairs: int = FILTER_PAIRS
    """Pairs to look at, at most."""

    outlier_multiple: float = 2.0
    """Pairs are left out as in training: those whose norm exceeds this multiple of the median."""

    memory: float = 16e9
    """Bytes that judging may take; if all latents need more, they are looked at in several passes.
    """

    def __post_init__(self):
        if self.pairs < 2:
            raise ValueError(f"The filter needs two pairs at least, got pairs={self.pairs}.")
        for name in ("predictability", "shadow", "ridge", "memory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")


@dataclass
class FilteredLatents:
    """Latents called exclusive, and what the filter says of each, `[L]` everywhere."""

    latents: Tensor
    sources: Tensor
    """The source that each is called exclusive to."""

    firings: Tensor
    own: Tensor
    """R2 of its activation predicted from its own source."""

    others: Tensor
    """R2 of its activation predicted from the other sources."""

    shadow: Tensor
    """Effect on what is left of the other sources, less three standard errors, as a multiple of
    that on its own: `|cov(x_r) - R_sr R_rs cov(x_r)| / |cov(x_s) - R_rs cov(x_r)|`, the largest of
    all r, with linear maps R and covariances with the activation where the latent is present."""

    energy: Tensor
    """Mean squared norm of what it writes into its source, normalised."""

    verdicts: Tensor
    pairs: int
    """Pairs that were looked at."""

    moments: LatentMoments | None
    """Sums over all pairs, if they were held at once."""

    min_firings: int = MIN_FIRINGS
    min_own: float = MIN_OWN

    @property
    def score(self) -> Tensor:
        """What kept latents are ranked by, `[L]` in [0, 1]; 0 for all others.

        The share of the activation's variance that its own source explains and the others do not,
        less what the latent moves of theirs. It says how exclusive a difference is, not how large.
        """
        unique = (self.own - self.others.clamp_min(0)).clamp(0, 1)
        return unique * (1 - self.shadow).clamp(0, 1) * (self.verdicts == Verdict.KEPT)

    @property
    def dense(self) -> Tensor:
        """Whether a latent fires on over a tenth of the pairs, `[L]`."""
        return self.firings > DENSE_FRACTION * self.pairs

    def order(self) -> list[int]:
        """The places of all latents, the highest score first and dense ones last."""
        dense, score = self.dense.tolist(), self.score.tolist()
        return sorted(range(len(dense)), key=lambda i: (dense[i], -score[i]))

    def kept(self, source: int) -> Tensor:
        """The latents that stay exclusive to a source."""
        return self.latents[(self.verdicts == Verdict.KEPT) & (self.sources == source)]

    def counts(self, source: int | None = None) -> dict[str, int]:
        """How many latents, of one source or of all, have each verdict."""
        mine = self.verdicts if source is None else self.verdicts[self.sources == source]
        return {v.name.lower(): int((mine == v).sum()) for v in Verdict}

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per latent, the highest score first and dense ones last."""
        score = self.score
        return [
            {
                "latent": int(self.latents[i]),
                "source": int(self.sources[i]),
                "verdict": Verdict(int(self.verdicts[i])).name.lower(),
                "reason": self._reason(i),
                "score": score[i].item(),
                "r2_own": self.own[i].item(),
                "r2_others": self.others[i].item(),
                "shadow": self.shadow[i].item(),
                "energy": self.energy[i].item(),
                "firings": int(self.firings[i]),
                "pairs_needed": pairs_needed(int(self.firings[i]), self.pairs, self.min_firings),
            }
            for i in self.order()
        ]

    def _reason(self, i: int) -> str:
        verdict = Verdict(int(self.verdicts[i]))
        if verdict == Verdict.TOO_RARE:
            why = too_rare(int(self.firings[i]), self.pairs, self.min_firings)
            return f"{verdict.reason}: {why}"
        if verdict == Verdict.NOT_LINEAR:
            return f"{verdict.reason} (R2 {self.own[i]:.2f}, {self.min_own:g} is needed)"
        return verdict.reason


def called_exclusive(crosscoder: Crosscoder) -> list[Tensor]:
    """Latents that equation 12 calls exclusive to each source, one index tensor per source."""
    return [
        (crosscoder.relative_decoder_norm(s) > EXCLUSIVE_NORM).nonzero()[:, 0].cpu()
        for s in range(len(crosscoder.d_sources))
    ]


def judge_exclusives(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    cfg: FilterConfig | None = None,
    *,
    candidates: Sequence[Tensor] | None = None,
) -> FilteredLatents:
    """Judge the latents that a crosscoder calls exclusive, on any pairs of its sources.

    `candidates` are the latents called exclusive to each source, those of equation 12 by default.
    Every regression is fitted on one half of the pairs and judged on the other, both ways. Raises
    ValueError if the stream has fewer than two pairs.
    """
    cfg = cfg or FilterConfig()
    chosen = called_exclusive(crosscoder) if candidates is None else list(candidates)
    latents = torch.cat([c.cpu() for c in chosen])
    sources = torch.cat([torch.full((len(c),), s) for s, c in enumerate(chosen)])
    if stream.num_pairs < 2:
        raise ValueError("The filter needs pairs to look at; the stream has fewer than two.")

    fixed = bytes_needed(0, crosscoder.d_in)
    per_latent = bytes_needed(1, crosscoder.d_in) - fixed
    at_once = max(int((cfg.memory - fixed) / per_latent), 1)
    parts = []
    for start in range(0, max(len(latents), 1), at_once):
        some = slice(start, start + at_once)
        folds = collect(
            crosscoder,
            stream,
            latents[some],
            num_pairs=cfg.pairs,
            outlier_multiple=cfg.outlier_multiple,
        )
        parts.append(_judge(crosscoder, folds, latents[some], sources[some], cfg))
    if len(parts) == 1:
        return parts[0]
    fields = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name not in ("moments", "pairs", "min_firings", "min_own")
    }
    thresholds = {"min_firings": cfg.min_firings, "min_own": cfg.min_own}
    return FilteredLatents(**fields, pairs=parts[0].pairs, moments=None, **thresholds)


def _judge(
    crosscoder: Crosscoder,
    folds: list[LatentMoments],
    latents: Tensor,
    sources: Tensor,
    cfg: FilterConfig,
) -> FilteredLatents:
    together = folds[0] + folds[1]
    size = len(latents)
    own, others, energy = (torch.zeros(size, dtype=torch.float64) for _ in range(3))
    for s, columns in enumerate(crosscoder.columns):
        mine = (sources == s).nonzero()[:, 0]
        if not len(mine):
            continue
        rest = [c for r, c in enumerate(crosscoder.columns) if r != s]
        for read, result in (([columns], own), (rest, others)):
            shares = [
                predicted_share(fit, test, read, cfg.ridge)[mine]
                for fit, test in (folds, folds[::-1])
            ]
            result[mine] = (shares[0] + shares[1]) / 2
        squares = crosscoder.decoder_norms()[latents[mine].to(crosscoder.device), s].square()
        mean_squares = together.z_squares[mine] / max(together.pairs, 1)
        energy[mine] = mean_squares * squares.double().cpu()
    shadow = _shadows(folds, together, crosscoder.columns, sources, cfg.ridge)

    verdicts = torch.full((size,), int(Verdict.KEPT))
    verdicts[shadow >= cfg.shadow] = Verdict.SHADOW
    verdicts[others >= cfg.predictability * own] = Verdict.PREDICTABLE
    verdicts[own < cfg.min_own] = Verdict.NOT_LINEAR
    verdicts[together.firings < cfg.min_firings] = Verdict.TOO_RARE
    return FilteredLatents(
        latents=latents,
        sources=sources,
        firings=together.firings,
        own=own,
        others=others,
        shadow=shadow,
        energy=energy,
        verdicts=verdicts,
        pairs=together.pairs,
        moments=together,
        min_firings=cfg.min_firings,
        min_own=cfg.min_own,
    )


def _shadows(
    folds: Sequence[LatentMoments],
    together: LatentMoments,
    columns: Sequence[slice],
    sources: Tensor,
    ridge: float,
) -> Tensor:
    """How far each latent moves the other sources' own part, relative to its source's, `[L]`.

    Covariances are with `z * (z >= level)`, where level is half of the latent's mean activation,
    weighted by itself: `sum(z^2) / sum(z) / 2`. Latents also fire a little where what they stand
    for is absent, and over many pairs what happens to be there would add up.

    With linear maps R between source s and another one r, a latent moves what r does not predict
    of s by `|cov(x_s) - R_rs cov(x_r)|`. What it moves of r is taken without what goes to s and
    comes back: `|cov(x_r) - R_sr R_rs cov(x_r)|`. Were it `cov(x_r) - R_sr cov(x_s)`, a concept of
    s alone would count as moving r, where the map makes of it something that r does not have.

    Squared lengths are products of two folds' covariances, whose errors are independent: the
    length of one estimate grows with its error, and a rare latent would always seem to move r.
    From what it moves of r, three standard errors are taken.
    """
    covariance = together.x_covariance
    pairs_of_folds = (folds[0].pairs * folds[1].pairs) ** 0.5
    result = torch.zeros(len(sources), dtype=torch.float64)
    for s, own in enumerate(columns):
        mine = sources == s
        if not mine.any():
            continue
        effects = [fold.present_covariance[mine] for fold in folds]
        for r, other in enumerate(columns):
            if r == s:
                continue
            across = covariance[own, other]
            there = ridge_regression(covariance[own, own], across, ridge)
            back = ridge_regression(covariance[other, other], across.T, ridge)
            # From a latent's covariances to what it moves of s and of r.
            home, away = (covariance.new_zeros(len(covariance), len(m)) for m in (there, back))
            home[own] = torch.eye(len(there), dtype=there.dtype)
            home[other] = -back
            away[other] = torch.eye(len(back), dtype=back.dtype) - back @ there
            # Of the product for a latent that is independent of r.
            spread = (away.T @ covariance @ away).norm()
            error = together.present_variance[mine] * spread / pairs_of_folds
            ratio = (_squared_lengths(effects, away) - ERRORS * error).clamp_min(0)
            ratio /= _squared_lengths(effects, home).clamp_min(1e-30)
            result[mine] = torch.maximum(result[mine], ratio.sqrt())
    return result


def _squared_lengths(effects: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Squared lengths `[L]` of `effect @ weights`, the effect `[L, D]` known from two folds."""
    a, b = (effect @ weights for effect in effects)
    return (a * b).sum(1)
