"""A small BatchTopK autoencoder of what one model has beyond the other (Bussmann et al. 2024).

n pairs, M latents, D width, E places where a latent is present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...crosscoders.batch_topk import select_above, select_largest

_AT_ONCE = 4096
_SCALED_BY = 4096  # pairs that the scale is taken of


@dataclass(frozen=True)
class CoderConfig:
    """How large it is, and how long it is trained."""

    latents: int = 128
    k: int = 4
    steps: int = 200
    pairs_per_step: int = 512
    lr: float = 3e-3
    seed: int = 0


class Fired(NamedTuple):
    """Where latents are present, and the latents by energy."""

    activations: Tensor
    """`[E]`, float64, in units of the median norm of a pair by the root of D."""

    latents: Tensor
    """`[E]`."""

    pairs: Tensor
    """`[E]`."""

    order: list[int]
    """All latents, the one of largest energy first."""

    directions: Tensor
    """What each writes, of length 1, `[M, D]`."""

    energy: Tensor
    """Sum of each one's squared activations, `[M]`."""


def difference_coder(at: Callable[[Tensor], Tensor], count: int, config: CoderConfig) -> Fired:
    """Train it on `count` pairs, which `at` gives by their numbers, `[len(numbers), D]`.

    A latent is present where it is at least half as active as on average, weighted by activation.
    """
    generator = torch.Generator().manual_seed(config.seed)
    some = at(torch.randperm(count, generator=generator)[:_SCALED_BY]).float()
    mean = some.mean(0)
    scale = some.shape[1] ** 0.5 / (some - mean).norm(dim=1).median().clamp_min(1e-12)

    def read(numbers: Tensor) -> Tensor:
        return (at(numbers).float() - mean) * scale

    decoder = F.normalize(torch.randn(config.latents, some.shape[1], generator=generator), dim=1)
    encoder, bias = decoder.clone(), torch.zeros(config.latents)
    weights = [weight.requires_grad_() for weight in (encoder, bias, decoder)]
    optimizer = torch.optim.Adam(weights, lr=config.lr)
    cuts = []
    for _ in range(config.steps):
        batch = read(torch.randint(count, (config.pairs_per_step,), generator=generator))
        activations = F.relu(F.linear(batch, encoder, bias))
        chosen, cut = select_largest(activations.detach(), config.k * len(batch))
        loss = ((activations * chosen) @ decoder - batch).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder.copy_(F.normalize(decoder, dim=1))
        cuts.append(float(cut))
    late = cuts[len(cuts) // 2 :]
    parts = (read(numbers) for numbers in torch.arange(count).split(_AT_ONCE))
    return _fired(parts, encoder.detach(), bias.detach(), decoder.detach(), sum(late) / len(late))


def _fired(
    parts: Iterator[Tensor], encoder: Tensor, bias: Tensor, decoder: Tensor, threshold: float
) -> Fired:
    values, latents, pairs, start = [], [], [], 0
    for x in parts:
        found = F.relu(F.linear(x, encoder, bias))
        rows, columns = select_above(found, threshold).nonzero().T
        values.append(found[rows, columns].double())
        latents.append(columns)
        pairs.append(rows + start)
        start += len(x)
    activations, latent, pair = (torch.cat(parts) for parts in (values, latents, pairs))
    total = latent.bincount(activations, minlength=len(encoder))
    energy = latent.bincount(activations.square(), minlength=len(encoder))
    present = activations >= (energy / total.clamp_min(1e-30) / 2)[latent]
    order = energy.argsort(descending=True).tolist()
    return Fired(activations[present], latent[present], pair[present], order, decoder, energy)
