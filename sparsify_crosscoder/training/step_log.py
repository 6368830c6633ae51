"""What happens between two lines of a run's log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..crosscoders import Crosscoder, CrosscoderOutput, World


class Measured(NamedTuple):
    """What happened to one crosscoder since the last line, over all ranks."""

    fve: float
    fve_per_source: list[float]
    auxk_loss: float
    """Mean of the passes."""

    l0: float
    pairs_per_second: float


class StepLog:
    """Sums between two lines of the log, on the device until a line is written."""

    def __init__(self, crosscoders: Mapping[str, Crosscoder], world: World):
        self.crosscoders, self.world = crosscoders, world
        self.fired = {
            name: torch.zeros(one.num_latents, dtype=torch.bool, device=one.device)
            for name, one in crosscoders.items()
        }
        """Which latents of each crosscoder fired in the current step, `[M]`."""
        self.reset()

    def reset(self) -> None:
        """Begin a line."""
        self.variances: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}  # auxiliary loss, active entries, forward passes
        for name, one in self.crosscoders.items():
            for sums in (self.variances, self.errors):
                sums[name] = torch.zeros(len(one.d_sources), device=one.device)
            self.sums[name] = torch.zeros(3, device=one.device)
        self.pairs = 0
        self.started = time.monotonic()

    def begin_step(self) -> None:
        """Forget what fired in the last step."""
        for fired in self.fired.values():
            fired.zero_()

    def add(self, name: str, out: CrosscoderOutput) -> None:
        """Count a forward pass of this rank."""
        self.fired[name].index_fill_(0, out.code.indices, True)
        self.errors[name] += out.errors
        self.sums[name] += torch.stack(
            [
                out.auxk_loss.detach().float() / self.world.size,
                out.errors.new_tensor(float(len(out.code.indices))),
                out.errors.new_tensor(1 / self.world.size),
            ]
        )

    def measured(self) -> dict[str, Measured]:
        """What happened since the last line, which ends with this."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        found = {}
        for name in self.crosscoders:
            errors = self.world.sum(self.errors[name])
            auxk, entries, passes = self.world.sum(self.sums[name]).tolist()
            variances = self.variances[name]
            found[name] = Measured(
                fve=1 - (errors.sum() / variances.sum()).item(),
                fve_per_source=(1 - errors / variances).tolist(),
                auxk_loss=auxk / max(passes, 1e-9),
                l0=entries / max(self.pairs, 1),
                pairs_per_second=self.pairs / seconds,
            )
        self.reset()
        return found
