"""The gradient clip of a training step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, to the last bit, with fewer calls.

    All gradients must lie on one device.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(share)
