"""The processes that share one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


def _alone(x: Tensor) -> Tensor:
    return x


class World(NamedTuple):
    """How tensors of all ranks come together; the default is one process."""

    gather: Callable[[Tensor], Tensor] = _alone
    """Concatenate equally shaped tensors of all ranks along their first dimension."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        """Sum of a tensor over the ranks."""
        return self.gather(x[None]).sum(0) if self.size > 1 else x

    def total(self, count: int, device: torch.device) -> int:
        """Sum of a number over the ranks; one process alone does not wait for its device."""
        return int(self.sum(torch.tensor(count, device=device))) if self.size > 1 else count

    def gather_rows(self, x: Tensor) -> Tensor:
        """Concatenate tensors `[n, ...]` whose lengths differ from rank to rank."""
        if self.size == 1:
            return x
        lengths = self.gather(torch.tensor([len(x)], device=x.device)).tolist()
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        parts = self.gather(padded).split(max(lengths))
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])


ALONE = World()


def current_world() -> World:
    """The world of torch.distributed, or one process if it is not initialised."""
    if not dist.is_initialized():
        return ALONE

    def gather(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    return World(gather, dist.get_rank(), dist.get_world_size())
