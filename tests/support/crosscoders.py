"""Small crosscoders of every registered architecture."""

from typing import Any

import torch
from sparsify.muon import Muon
from sparsify.sign_sgd import SignSGD

from sparsify_crosscoder import Crosscoder, CrosscoderConfig
from sparsify_crosscoder.registry import get_architecture


def small_config(arch: str, sources: int = 2, **options: Any) -> CrosscoderConfig:
    """40 latents and a k of 3, and some exclusive latents where the architecture has them."""
    config_class = get_architecture(arch).config_class
    if "exclusive_fractions" in config_class.__dataclass_fields__:
        options = {"exclusive_fractions": [0.2, 0.15, 0.1][:sources], **options}
    return config_class(**{"num_latents": 40, "k": 3, **options})


def fitting_widths(arch: str, uneven: list[int], even: list[int]) -> list[int]:
    """The uneven widths, or the even ones where the architecture refuses them."""
    coder_class = get_architecture(arch).coder_class
    try:
        coder_class.make_partition(40, uneven, small_config(arch, len(uneven)))
    except ValueError:
        return even
    return uneven


def make(arch: str, options: dict[str, Any], sources: int = 2) -> Crosscoder:
    """A float64 crosscoder of its initial seed 0, prepared as for a run of 50 pairs."""
    torch.manual_seed(0)
    widths = fitting_widths(arch, [7, 5, 4][:sources], [6, 6, 6][:sources])
    coder_class = get_architecture(arch).coder_class
    crosscoder = coder_class(widths, small_config(arch, sources, **options), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    shape = (crosscoder.d_in, crosscoder.d_in)
    mixed = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.randn(50, crosscoder.d_in, generator=generator, dtype=torch.float64) @ mixed
    crosscoder.prepare(lambda num_pairs: [x])
    return crosscoder


def train_a_little(crosscoder: Crosscoder, optimizer: str, steps: int) -> None:
    """Take steps on random pairs at a high rate, with weight decay where the optimizer has it."""
    params = list(crosscoder.parameters())
    if optimizer == "adam":
        opts = [torch.optim.Adam(params, lr=0.1, weight_decay=0.1)]
    elif optimizer == "signum":
        opts = [SignSGD(params, lr=0.1)]
    else:
        opts = [Muon([p for p in params if p.ndim == 2], lr=0.1)]
    for _ in range(steps):
        x = torch.randn(20, crosscoder.d_in, dtype=crosscoder.dtype)
        out = crosscoder(x, dead_mask=torch.rand(crosscoder.num_latents) < 0.5)
        (out.loss + out.auxk_loss).backward()
        for opt in opts:
            opt.step()
        crosscoder.zero_grad()
