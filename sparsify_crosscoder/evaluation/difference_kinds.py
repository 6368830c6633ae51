"""What kind of difference a latent or a linear change is, and how much of one.

M latents, D width of a source.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..crosscoders import Crosscoder
from .difference_copies import Candidate
from .difference_score import beyond_noise, heard, strength
from .filter import Filtered
from .latent_moments import PRESENT
from .latent_shifts import CodedPairs, LatentShifts
from .linear_changes import FittedResidual, LinearChange
from .residuals import Prediction
from .verdicts import Verdict

TURNED = 0.97
"""Cosine of two decoders below which a shared latent has turned."""

GREW = 1.25
"""Ratio of their lengths from which it has grown, or the other way round shrunk."""


def latent_candidates(
    found: CodedPairs,
    fitted: Sequence[FittedResidual],
    shifts: Sequence[LatentShifts],
    filtered: Filtered,
    elsewhere: Sequence[Tensor] | None = None,
) -> list[Candidate]:
    """Every latent that fires, with the residual that it moves most of those that tell of it; and
    every component that `with_components` put behind them.

    The direction is what the source has more of where the latent is present, on average; where the
    residual is what a map leaves, what the latent writes there, or a shared one more than the map
    makes of its other decoders.

    `elsewhere` is the share of the variance along its direction that each explains in a reference,
    beyond noise, `[M]` for each residual: it is no part of this difference.
    """
    crosscoder = found.crosscoder
    columns = len(found.level)
    owner = torch.full((columns,), -1)
    owner[filtered.judged.latents] = filtered.judged.sources
    verdicts = dict(
        zip(filtered.judged.latents.tolist(), filtered.judged.verdicts.tolist(), strict=True)
    )
    presence = found.present / len(found)
    kl = found.heard_where_present()
    loud = torch.ones(columns, dtype=torch.float64) if kl is None else heard(kl)
    best = torch.full((columns,), -1)
    most = torch.full((columns,), -1.0, dtype=torch.float64)
    for v, (one, moved) in enumerate(zip(fitted, shifts, strict=True)):
        own = beyond_noise(moved.explained, presence)
        if elsewhere is not None:
            own = own - elsewhere[v]
        strengths = strength(own, moved.tested.t)
        told_of = torch.tensor([-1, one.residual.source])
        if (reference := one.residual.prediction.reference) is not None:
            told_of = torch.cat([told_of, torch.tensor([reference])])
        better = torch.isin(owner, told_of) & (strengths > most)
        best[better], most[better] = v, strengths[better]
    decoders = [
        crosscoder.decoder(s).detach().float().cpu() for s in range(len(crosscoder.d_sources))
    ]
    # Exclusive latents with a loss of their own are a dictionary of the difference.
    alone = "difference" if getattr(crosscoder.cfg, "difference_weight", 0) else "exclusive"
    candidates = []
    for latent in ((best >= 0) & (found.present > 0)).nonzero()[:, 0].tolist():
        v = int(best[latent])
        one, moved = fitted[v].residual, shifts[v]
        own = int(owner[latent])
        source = one.source if own < 0 else own
        cosine = growth = None
        kind = alone if own >= 0 else "shared" if latent < crosscoder.num_latents else "component"
        verdict = "moved" if own < 0 else Verdict(verdicts[latent]).name.lower()
        writes = torch.zeros(0)
        if own >= 0:
            writes = decoders[own][latent]
        elif not one.prediction.outside:
            mine = [decoder[latent] for decoder in decoders]
            expected = _expected(crosscoder, one.prediction, mine)
            cosine = float(F.cosine_similarity(mine[source], expected, dim=0))
            growth = float(mine[source].norm() / expected.norm().clamp_min(1e-30))
            verdict, writes = _verdict(cosine, growth), mine[source] - expected
        if one.prediction.reference_columns is None:
            direction = writes * float(found.level[latent]) / PRESENT
        else:
            moves = moved.directions[latent].float() * float(moved.tested.effect[latent])
            direction = one.unwhitened(moves).cpu() * (1 if source == one.source else -1)
        candidates.append(
            Candidate(
                kind,
                source,
                latent,
                verdict,
                float(most[latent] * loud[latent]),
                float(most[latent]),
                float(moved.tested.p_value[latent]),
                float(moved.tested.effect[latent]),
                float(moved.tested.error[latent]),
                float(moved.explained[latent].clamp_min(0)) / len(one.mean),
                direction,
                v,
                moved.directions[latent].float(),
                cosine,
                growth,
                kl_heard=None if kl is None else float(kl[latent]),
            )
        )
    return candidates


def _expected(crosscoder: Crosscoder, prediction: Prediction, decoders: list[Tensor]) -> Tensor:
    """What a latent's decoders in the other sources become in the residual's, `[D]`."""
    others = [
        prediction.predicted(decoder[None], columns)[0]
        for s, (decoder, columns) in enumerate(zip(decoders, crosscoder.columns, strict=True))
        if s != prediction.source and prediction.reference in (None, s)
    ]
    return torch.stack(others).sum(0)


def _verdict(cosine: float, growth: float) -> str:
    if cosine < TURNED:
        return "turned"
    if growth >= GREW:
        return "grew"
    return "shrank" if growth <= 1 / GREW else "moved"


def linear_candidate(
    found: CodedPairs, fitted: Sequence[FittedResidual], change: LinearChange
) -> Candidate:
    """A shift of the mean or a component of a linear change, both present everywhere."""
    residual = fitted[change.residual].residual
    kl = found.heard_anywhere()
    everywhere = None if kl is None else kl.mean()
    strong = float(strength(torch.tensor(change.own), torch.tensor(change.t)))
    white = F.normalize(change.direction.to(residual.whitening) @ residual.whitening, dim=0)
    return Candidate(
        change.kind,
        residual.source,
        None,
        "shifted" if change.kind == "mean" else "changed",
        strong if everywhere is None else strong * float(heard(everywhere)),
        strong,
        change.p_value,
        change.effect,
        change.effect / change.t if change.t > 0 else 0.0,
        change.own,
        change.direction,
        change.residual,
        white.cpu(),
        reads=change.reads,
        reference=residual.prediction.reference,
        kl_heard=None if everywhere is None else float(everywhere),
    )
