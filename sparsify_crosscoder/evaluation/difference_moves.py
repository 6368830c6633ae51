"""How far each pair moves along a difference, also where none of its latents is present.

N pairs, D width of a source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .differences import Difference, Differences
from .residuals import Prediction, beside_prediction, predictions


@torch.no_grad()
def moves_along(listed: Differences, one: Difference) -> Tensor:
    """How far the residual of each pair is along a difference's direction, `[N]`.

    1 is as far from the mean of all pairs as where the difference is present, on average; of a
    residual as it is, not whitened. A latent's activation has a threshold, so that it tells what a
    behaviour shows in; this tells where it would. The pairs are those of `listed.found`.
    """
    found = listed.found
    factors = found.crosscoder.factors.cpu()
    prediction = _prediction(listed, one)
    sign = 1.0 if prediction.source == one.source else -1.0
    unit = one.direction.float() / one.direction.float().square().sum().clamp_min(1e-30)
    unit = sign * unit / factors[prediction.source]
    along = [prediction.residual(x).cpu() @ unit for _, x, _ in found.batches()]
    joined = torch.cat(along)
    return joined - joined.mean()


def _prediction(listed: Differences, one: Difference) -> Prediction:
    """What is taken from the difference's source, or from the one that shares its basis."""
    found, config = listed.found, listed.config
    beside = found.pairs.beside
    if beside is not None:
        return beside_prediction(found.crosscoder, beside.source)
    made = predictions(found.crosscoder, found.moments, config.ridge, config.by_maps)
    return next(p for p in made if one.source in (p.source, p.reference))
