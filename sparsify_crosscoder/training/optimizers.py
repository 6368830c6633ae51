"""The optimizers that a run may name, and their learning rate schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify.sign_sgd import SignSGD
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
