"""The optimizers that a run may name, and their learning rate schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify.sign_sgd import SignSGD
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup, get_wsd_schedule

from ..config import LEARNING_RATE, CrosscoderTrainConfig
from ..crosscoders import Crosscoder


def make_optimizers(
    cfg: CrosscoderTrainConfig, crosscoders: Sequence[Crosscoder], total_steps: int
) -> tuple[list[Any], list[Any]]:
    """Optimizers of all the crosscoders' parameters, and the schedules of those that have one."""
    params = [p for crosscoder in crosscoders for p in crosscoder.parameters()]

    def lr(default: float) -> float:
        return default if cfg.lr is None else cfg.lr

    match cfg.optimizer:
        case "adam":
            fused = params[0].device.type in ("cpu", "cuda")
            adam = torch.optim.Adam(params, lr=lr(LEARNING_RATE), fused=fused)
            return [adam], [_schedule(adam, cfg, total_steps)]
        case "muon":
            from sparsify.muon import Muon

            matrices = [p for p in params if p.ndim >= 2]
            vectors = [p for p in params if p.ndim < 2]
            both = [Muon(matrices, lr=lr(2e-3)), torch.optim.Adam(vectors, lr=lr(2e-3))]
            return both, [_schedule(optimizer, cfg, total_steps) for optimizer in both]
        case "signum":
            groups = [
                {
                    "params": list(crosscoder.parameters()),
                    "lr": lr(5e-3 / (crosscoder.num_latents / 2**14) ** 0.5),
                }
                for crosscoder in crosscoders
            ]
            signum = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
            signum.train()
            return [signum], []
        case other:
            raise ValueError(f"Unknown optimizer '{other}'; use adam, muon or signum.")


def take_step(
    optimizers: Sequence[Any], crosscoders: Sequence[nn.Module], grad_clip: float
) -> None:
    """Step, and drop the gradients, each crosscoder's shortened to the norm `grad_clip` if not 0.

    Where fused Adam trains one crosscoder, it shortens the gradient as it reads it, which spares a
    pass over all of it.
    """
    first, alone = optimizers[0], len(crosscoders) == 1
    divides = alone and isinstance(first, torch.optim.Adam) and bool(first.defaults["fused"])
    if grad_clip > 0 and divides:
        first.grad_scale = _excess(crosscoders[0], grad_clip)  # pyright: ignore[reportAttributeAccessIssue]
    elif grad_clip > 0:
        for crosscoder in crosscoders:
            nn.utils.clip_grad_norm_(crosscoder.parameters(), grad_clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if divides:
        first.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]


def _excess(module: nn.Module, grad_clip: float) -> Tensor:
    """What the gradient is to be divided by for `clip_grad_norm_`'s, in float32."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    return ((norm.float() + 1e-6) / grad_clip).clamp_min(1)


def _schedule(optimizer: Any, cfg: CrosscoderTrainConfig, total_steps: int) -> Any:
    warmup, decay = cfg.lr_warmup_steps or 0, cfg.lr_decay_steps
    if not decay:
        return get_constant_schedule_with_warmup(optimizer, warmup)
    return get_wsd_schedule(
        optimizer,
        num_warmup_steps=warmup,
        num_decay_steps=decay,
        num_training_steps=total_steps,
        decay_type="linear",
    )
