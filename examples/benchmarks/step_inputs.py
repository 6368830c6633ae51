"""What every way to take a step is given: activation pairs and a crosscoder, new or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from step_settings import Setting
from step_variants import Ours, half_of
from torch import Tensor

from sparsify_crosscoder import Crosscoder, CrosscoderConfig, DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.store.normalization import estimate_normalization

WARMUP_LEARNING_RATE = 1e-3


def synthetic_pairs(widths: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Raw activation pairs as uneven as a language model's, one `[count, d_s]` per source.

    A pair is a sum of about 32 of 4,096 concepts, of exponential strengths and frequencies that
    fall as rank ** -0.7, each with a random direction in every source (or, a tenth of them, in one
    only); a tenth of the variance is white noise. Three dimensions of a source have a large mean
    and 12 times the spread of the others, and the size of a pair varies log-normally by 15%. `seed`
    draws the pairs; the directions depend on the widths alone.
    """
    concepts = 4_096
    fixed = torch.Generator().manual_seed(0)
    drawn = torch.Generator().manual_seed(seed + 1)
    frequency = torch.arange(1, concepts + 1) ** -0.7
    frequency = (32 * frequency / frequency.sum()).clamp_max(0.5)
    owner = torch.randint(20 * len(widths) // 2, (concepts,), generator=fixed)
    directions, offsets, heavy = [], [], []
    for s, width in enumerate(widths):
        mine = torch.randn(concepts, width, generator=fixed) / width**0.5
        others = (owner < len(widths)) & (owner != s)
        directions.append(mine * ~others[:, None])
        offsets.append(0.1 * torch.randn(width, generator=fixed))
        heavy.append(torch.randperm(width, generator=fixed)[:3])
        offsets[s][heavy[s]] *= 200
    pairs: list[list[Tensor]] = [[] for _ in widths]
    for start in range(0, count, 2_048):
        n = min(2_048, count - start)
        active = torch.rand(n, concepts, generator=drawn) < frequency
        strengths = torch.empty(n, concepts).exponential_(generator=drawn) * active
        size = torch.exp(0.15 * torch.randn(n, 1, generator=drawn))
        for s, width in enumerate(widths):
            x = strengths @ directions[s]
            spread = x.std()
            x += spread * 0.33 * torch.randn(n, width, generator=drawn)
            x[:, heavy[s]] += 12 * spread * torch.randn(n, 3, generator=drawn)
            pairs[s].append(x * size + offsets[s])
    return [torch.cat(parts) for parts in pairs]


def make_batches(setting: Setting, count: int, seed: int, device: str) -> list[list[Tensor]]:
    pairs = synthetic_pairs(setting.widths, setting.batch * count, seed)
    chunks = [x.to(device).split(setting.batch) for x in pairs]
    return [list(batch) for batch in zip(*chunks, strict=True)]


def make_crosscoder(
    setting: Setting,
    sample: Sequence[Tensor],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Crosscoder:
    """A new crosscoder of a setting's sizes, with the normalisation of a raw `sample`."""
    torch.manual_seed(seed)
    num_latents, k = setting.num_latents, setting.k
    if setting.arch == "dfc":
        fractions = [0.05] * len(setting.widths)
        cfg = DFCConfig(num_latents=num_latents, k=k, exclusive_fractions=fractions)
        crosscoder = DedicatedFeatureCrosscoder(setting.widths, cfg, device, dtype)
    else:
        cfg = CrosscoderConfig(num_latents=num_latents, k=k)
        crosscoder = Crosscoder(setting.widths, cfg, device, dtype)
    crosscoder.set_normalization(*estimate_normalization(sample))
    return crosscoder


class Trained:
    """Crosscoders that have been trained for some steps, made once for each shape."""

    def __init__(self, device: str, steps: int):
        self.device, self.steps = device, steps
        self.weights: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        self.samples: dict[tuple[int, ...], list[Tensor]] = {}

    def crosscoder(self, setting: Setting) -> Crosscoder:
        """A crosscoder of a setting's shape; with AuxK, half of its latents are too weak to win."""
        if setting.widths not in self.samples:
            sample = synthetic_pairs(setting.widths, 4_096, seed=1)
            self.samples[setting.widths] = [x.to(self.device) for x in sample]
        crosscoder = make_crosscoder(setting, self.samples[setting.widths], self.device)
        shape = (setting.widths, setting.num_latents, setting.arch)
        if shape not in self.weights:
            step = Ours(crosscoder, auxk=False, lr=WARMUP_LEARNING_RATE)
            for batch in make_batches(replace(setting, batch=512), self.steps, 2, self.device):
                step.step(batch)
            self.weights[shape] = {
                name: p.detach().cpu().clone() for name, p in crosscoder.named_parameters()
            }
        with torch.no_grad():
            for name, parameter in crosscoder.named_parameters():
                parameter.copy_(self.weights[shape][name])
            if setting.auxk:
                dead = half_of(setting.num_latents).to(self.device)
                for block, weight in zip(
                    crosscoder.partition.blocks, crosscoder.encoder.weights, strict=True
                ):
                    weight[dead[block.start : block.stop]] *= 0.05
                crosscoder.encoder.bias[dead] *= 0.05
        return crosscoder
