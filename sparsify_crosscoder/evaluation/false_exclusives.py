"""Telling exclusive latents from those that stand for something the other models have as well.

Two tests, neither of which needs the other models' text or tokens:

predictability  A latent is linearly predicted, once from the activations of the other sources and
                once from its own. If the others do about as well, they carry the same information.
shadow          Each source is linearly predicted from the others. What is left of the other
                sources should not move with a latent that stands for something of its own source,
                where it is present and does not just fire a little. This guards residual DFCs,
                whose encoder already removes what is predictable.

Whether a latent can be judged follows from the standard errors of what is measured: the pairs that
are read grow until most can be, or a budget ends.

L latents, S sources, D the sum of their widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..scorability import (
    FILTER_PAIRS,
    MIN_OWN,
    MOST_PAIRS,
    Evidence,
    pairs_needed,
    too_little,
)
from ..store.stream import ActivationStream
from .filter_config import FilterConfig
from .latent_moments import DENSE_FRACTION, LatentMoments, bytes_needed, collect
from .latent_scaling import LatentScaling, fitted_scaling
from .latent_statistics import LatentStatistics, latent_statistics
from .verdicts import Verdict, decide

EXCLUSIVE_NORM = 0.8  # equation 12
UNJUDGED = 0.05  # share of the latents that fire of which no more pairs are read


@dataclass
class FilteredLatents:
    """Latents called exclusive, and what the filter says of each, `[L]` everywhere."""

    latents: Tensor
    sources: Tensor
    """The source that each is called exclusive to."""

    firings: Tensor

    measured: LatentStatistics
    """What verdicts and scores follow from, with standard errors."""

    scaling: LatentScaling
    """How much of each latent the sources have (Minder et al. 2025)."""

    energy: Tensor
    """Mean squared norm of what it writes into its source, normalised."""

    verdicts: Tensor
    firings_needed: Tensor
    """Firings at which its verdict would be clear, as its errors shrink; 0 where it is scorable."""

    pairs: int
    """Pairs that were looked at."""

    read: int
    """Pairs that were read, outliers among them."""

    moments: LatentMoments | None
    """Sums over all pairs, if they were held at once."""

    min_own: float = MIN_OWN

    @property
    def own(self) -> Tensor:
        """R2 of its activation predicted from its own source."""
        return self.measured.own.value

    @property
    def others(self) -> Tensor:
        """R2 of its activation predicted from the other sources."""
        return self.measured.others.value

    @property
    def shadow(self) -> Tensor:
        """Effect on what is left of the other sources, as a multiple of that on its own."""
        return self.measured.shadow.value

    @property
    def score(self) -> Tensor:
        """What latents are ranked by, `[L]` in [0, 1], whatever their verdict.

        The share of the activation's variance that its own source explains and the others do not,
        as if it fired on 1% of the pairs where it fires on fewer, less what the latent moves of
        theirs. It says how exclusive a difference is, not how large.
        """
        return self.measured.score.value

    @property
    def scorable(self) -> Tensor:
        """Whether the filter can say anything of a latent, `[L]`."""
        return torch.tensor([Verdict(v).scorable for v in self.verdicts.tolist()], dtype=torch.bool)

    @property
    def dense(self) -> Tensor:
        """Whether a latent fires on over a tenth of the pairs, `[L]`."""
        return self.firings > DENSE_FRACTION * self.pairs

    @property
    def unjudged(self) -> float:
        """Share of the latents that fire of which more pairs may say more."""
        alive = self.firings > 0
        left = (self.firings_needed > 0) & alive
        return (left.sum() / alive.sum().clamp_min(1)).item()

    def order(self) -> list[int]:
        """The places of all latents: the highest score first, dense ones and those that are not
        scorable last."""
        dense, score, scorable = self.dense.tolist(), self.score.tolist(), self.scorable.tolist()
        return sorted(range(len(dense)), key=lambda i: (not scorable[i], dense[i], -score[i]))

    def kept(self, source: int) -> Tensor:
        """The latents that stay exclusive to a source."""
        return self.latents[(self.verdicts == Verdict.KEPT) & (self.sources == source)]

    def counts(self, source: int | None = None) -> dict[str, int]:
        """How many latents, of one source or of all, have each verdict."""
        mine = self.verdicts if source is None else self.verdicts[self.sources == source]
        return {v.name.lower(): int((mine == v).sum()) for v in Verdict}

    def evidence(self, source: int) -> list[Evidence]:
        """Of every latent of a source that cannot be judged yet, what there is of it."""
        mine = (self.sources == source) & (self.firings_needed > 0)
        fired, needed = self.firings[mine].tolist(), self.firings_needed[mine].tolist()
        return [Evidence(*pair) for pair in zip(fired, needed, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per latent, in their order."""
        measured = self.measured
        by_error, by_reconstruction = (
            self.scaling.ratios(self.sources, kind) for kind in ("error", "reconstruction")
        )
        return [
            {
                "latent": int(self.latents[i]),
                "source": int(self.sources[i]),
                "verdict": Verdict(int(self.verdicts[i])).name.lower(),
                "reason": self._reason(i),
                "score": measured.score.value[i].item(),
                "score_error": measured.score.error[i].item(),
                "r2_own": measured.own.value[i].item(),
                "r2_own_error": measured.own.error[i].item(),
                "r2_others": measured.others.value[i].item(),
                "r2_others_error": measured.others.error[i].item(),
                "r2_own_at_rate": measured.own_at_rate.value[i].item(),
                "r2_others_at_rate": measured.others_at_rate.value[i].item(),
                "shadow": measured.shadow.value[i].item(),
                "shadow_error": measured.shadow.error[i].item(),
                "energy": self.energy[i].item(),
                "scaling_error_ratio": by_error.value[i].item(),
                "scaling_error_interval": by_error.interval(i),
                "scaling_reconstruction_ratio": by_reconstruction.value[i].item(),
                "scaling_reconstruction_interval": by_reconstruction.interval(i),
                "firings": int(self.firings[i]),
                "presence_error": measured.presence.error[i].item(),
                "firings_needed": int(self.firings_needed[i]) or None,
                "pairs_needed": self._pairs_needed(i),
            }
            for i in self.order()
        ]

    def _pairs_needed(self, i: int) -> int | None:
        return pairs_needed(int(self.firings[i]), self.pairs, int(self.firings_needed[i]))

    def _reason(self, i: int) -> str:
        verdict = Verdict(int(self.verdicts[i]))
        if self.firings_needed[i]:
            why = too_little(
                Evidence(int(self.firings[i]), int(self.firings_needed[i])), self.pairs
            )
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
    Raises ValueError if the stream has fewer than two pairs.
    """
    cfg = cfg or FilterConfig()
    chosen = called_exclusive(crosscoder) if candidates is None else list(candidates)
    latents = torch.cat([c.cpu() for c in chosen])
    sources = torch.cat([torch.full((len(c),), s) for s, c in enumerate(chosen)])
    if stream.num_pairs < 2:
        raise ValueError("The filter needs pairs to look at; the stream has fewer than two.")

    budget = min(cfg.pairs or MOST_PAIRS, stream.num_pairs)
    fixed = bytes_needed(0, crosscoder.d_in)
    per_latent = bytes_needed(1, crosscoder.d_in) - fixed
    at_once = max(int((cfg.memory - fixed) / per_latent), 1)
    passes = max(-(-len(latents) // at_once), 1)
    # Every pass has latents of all sources, so that the first tells how many pairs all need.
    shares = [torch.arange(one, len(latents), passes) for one in range(passes)]
    first = _judge_at_once(crosscoder, stream, latents[shares[0]], sources[shares[0]], cfg, budget)
    if passes == 1:
        return first
    first.moments = None  # or they stay in memory beside those of the next pass
    parts = [first]
    for share in shares[1:]:
        moments = collect(
            crosscoder,
            stream,
            latents[share],
            num_pairs=first.read,
            outlier_multiple=cfg.outlier_multiple,
        )
        parts.append(_judge(crosscoder, moments, latents[share], sources[share], cfg))
    return _joined(parts, torch.cat(shares).argsort())


def _judge_at_once(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    sources: Tensor,
    cfg: FilterConfig,
    budget: int,
) -> FilteredLatents:
    """Read twice as many pairs again and again, until most latents that fire can be judged."""
    moments, target = None, min(FILTER_PAIRS, budget)
    while True:
        moments = collect(
            crosscoder,
            stream,
            latents,
            num_pairs=target,
            outlier_multiple=cfg.outlier_multiple,
            into=moments,
        )
        judged = _judge(crosscoder, moments, latents, sources, cfg)
        if target == budget or judged.unjudged <= UNJUDGED:
            return judged
        target = min(2 * target, budget)


def _judge(
    crosscoder: Crosscoder,
    moments: LatentMoments,
    latents: Tensor,
    sources: Tensor,
    cfg: FilterConfig,
) -> FilteredLatents:
    measured = latent_statistics(
        crosscoder, moments, sources, predictability=cfg.predictability, ridge=cfg.ridge
    )
    verdicts, needed = decide(measured, moments.firings, moments.pairs, cfg.thresholds)
    norms = crosscoder.decoder_norms()[latents.to(crosscoder.device)].double().cpu()
    squares = norms.square().gather(1, sources[:, None])[:, 0]
    return FilteredLatents(
        latents=latents,
        sources=sources,
        firings=moments.firings,
        measured=measured,
        scaling=fitted_scaling(crosscoder, moments, latents),
        energy=moments.z_squares.sum(0) / max(moments.pairs, 1) * squares,
        verdicts=verdicts,
        firings_needed=needed,
        pairs=moments.pairs,
        read=moments.read,
        moments=moments,
        min_own=cfg.min_own,
    )


def _joined(parts: Sequence[FilteredLatents], order: Tensor) -> FilteredLatents:
    """The latents of several passes, in the order that they were given in."""
    tensors = ("latents", "sources", "firings", "energy", "verdicts", "firings_needed")
    together = {name: torch.cat([getattr(p, name) for p in parts])[order] for name in tensors}
    return FilteredLatents(
        **together,
        measured=LatentStatistics.join([p.measured for p in parts], order),
        scaling=LatentScaling.join([p.scaling for p in parts], order),
        pairs=parts[0].pairs,
        read=parts[0].read,
        moments=None,
        min_own=parts[0].min_own,
    )
