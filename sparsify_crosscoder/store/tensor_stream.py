"""Pairs that are in memory already."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..harvest.report import HarvestReport
from .order import PAIRS, random_numbers
from .stream import ActivationStream


class TensorStream(ActivationStream):
    """Pairs that are in memory already, one `[N, d_s]` tensor per source.

    With a `seed` every epoch has a new order, without one they come as they are. Of each step's
    rows, rank r of `world_size` takes every `world_size`-th. `text_ids` [N] say which text each
    pair is from. Raises ValueError if the sources have different numbers of pairs, or none.
    """

    def __init__(
        self,
        activations: Sequence[Tensor],
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        text_ids: Tensor | None = None,
    ):
        super().__init__()
        lengths = {len(x) for x in activations}
        if len(lengths) != 1 or not max(lengths):
            raise ValueError(
                f"Every source needs the same number of pairs, and at least one; got "
                f"{[len(x) for x in activations]}."
            )
        self.activations = list(activations)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.text_ids = text_ids
        self._order: tuple[int, Tensor] | None = None

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return len(self.activations[0])

    @property
    def d_sources(self) -> list[int]:
        return [x.shape[1] for x in self.activations]

    def texts(self, start: int, stop: int) -> Tensor | None:
        return None if self.text_ids is None else self.text_ids[self._rows(start, stop)]

    def _read(self, start: int, stop: int) -> list[Tensor]:
        mine = self._rows(start, stop)
        self._report += HarvestReport(pairs=len(mine))
        return [x[mine.to(x.device)] for x in self.activations]

    def _rows(self, start: int, stop: int) -> Tensor:
        parts = [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.num_pairs)
            end = min(stop, (epoch + 1) * self.num_pairs)
            parts.append(self._epoch_order(epoch)[offset : offset + end - start])
            start = end
        return torch.cat(parts)[self.rank :: self.world_size]

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            order = np.arange(self.num_pairs)
            if self.seed is not None:
                order = random_numbers(PAIRS, self.seed, epoch).permutation(order)
            self._order = epoch, torch.from_numpy(order)
        return self._order[1]
