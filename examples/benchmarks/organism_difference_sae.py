"""A plain sparse autoencoder of what one model has more of than the other.

N pairs, M latents, D width, E places where a latent is present.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from organism_settings import Scale
from torch import Tensor

from sparsify_crosscoder.crosscoders.batch_topk import select_above, select_largest

BATCH = 4096


class Fired(NamedTuple):
    """Where latents are present, and the latents by energy."""

    activations: Tensor
    """`[E]`."""
    latents: Tensor
    """`[E]`."""
    pairs: Tensor
    """`[E]`."""
    order: list[int]
    """All latents, the one of largest energy first."""


def difference_sae(difference: Tensor, scale: Scale, seed: int = 0) -> Fired:
    """Train a BatchTopK autoencoder (Bussmann et al. 2024) on B - A `[N, D]`.

    It has the latents, the L0 and the steps of the crosscoders. A latent is present where it is at
    least half as active as on average, weighted by activation, as a crosscoder's is.
    """
    x = difference.float() - difference.float().mean(0)
    x = x * (x.shape[1] ** 0.5 / x.norm(dim=1).median().clamp_min(1e-12))
    generator = torch.Generator().manual_seed(seed)
    decoder = F.normalize(torch.randn(scale.latents, x.shape[1], generator=generator), dim=1)
    encoder, bias = decoder.clone(), torch.zeros(scale.latents)
    weights = [weight.requires_grad_() for weight in (encoder, bias, decoder)]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    cuts = []
    for _ in range(scale.steps):
        batch = x[torch.randint(len(x), (scale.pairs_per_step,), generator=generator)]
        activations = F.relu(F.linear(batch, encoder, bias))
        chosen, cut = select_largest(activations.detach(), scale.k * len(batch))
        loss = ((activations * chosen) @ decoder - batch).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder.copy_(F.normalize(decoder, dim=1))
        cuts.append(float(cut))
    late = cuts[len(cuts) // 2 :]
    return _fired(x, encoder.detach(), bias.detach(), sum(late) / len(late))


def _fired(x: Tensor, encoder: Tensor, bias: Tensor, threshold: float) -> Fired:
    values, latents, pairs = [], [], []
    for start in range(0, len(x), BATCH):
        found = F.relu(F.linear(x[start : start + BATCH], encoder, bias))
        rows, columns = select_above(found, threshold).nonzero().T
        values.append(found[rows, columns].double())
        latents.append(columns)
        pairs.append(rows + start)
    activations, latent, pair = (torch.cat(parts) for parts in (values, latents, pairs))
    total = latent.bincount(activations, minlength=len(encoder))
    energy = latent.bincount(activations.square(), minlength=len(encoder))
    present = activations >= (energy / total.clamp_min(1e-30) / 2)[latent]
    order = energy.argsort(descending=True).tolist()
    return Fired(activations[present], latent[present], pair[present], order)
