"""The toy model's pairs as a stream to train on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...harvest.report import HarvestReport
from ...store.stream import ActivationStream
from .model import ToyModel

_CHUNK_PAIRS = 8192


class ToyStream(ActivationStream):
    """New pairs of a toy model, as many as asked for; the same for the same `seed`.

    Of the endless sequence of pairs, an epoch is the first `num_pairs`; later epochs have the same.
    """

    def __init__(self, model: ToyModel, num_pairs: int, seed: int):
        super().__init__()
        self.model = model
        self.seed = seed
        self._num_pairs = num_pairs
        self._chunk: tuple[int, list[Tensor]] | None = None

    @property
    def num_pairs(self) -> int:
        return self._num_pairs

    @property
    def d_sources(self) -> list[int]:
        return [self.model.cfg.width] * self.model.cfg.num_sources

    def _read(self, start: int, stop: int) -> list[Tensor]:
        parts: list[list[Tensor]] = []
        while start < stop or not parts:
            epoch_start = start // self.num_pairs * self.num_pairs
            number, offset = divmod(start - epoch_start, _CHUNK_PAIRS)
            length = min(_CHUNK_PAIRS - offset, self.num_pairs - (start - epoch_start))
            length = min(length, stop - start)
            parts.append([x[offset : offset + length] for x in self._chunk_at(number)])
            start += max(length, 1)
        self._report += HarvestReport(pairs=sum(len(part[0]) for part in parts))
        return [torch.cat(list(of_source)) for of_source in zip(*parts, strict=True)]

    def _chunk_at(self, number: int) -> list[Tensor]:
        if self._chunk is None or self._chunk[0] != number:
            # Every chunk has a seed of its own, so that a stream can begin anywhere. Of a seed,
            # torch's generator on a CPU takes the lower 32 bits.
            entropy = np.random.SeedSequence([self.model.seed, self.seed, number])
            generator = torch.Generator(self.model.device)
            generator.manual_seed(int(entropy.generate_state(1)[0]))
            self._chunk = number, self.model.sample(_CHUNK_PAIRS, generator)[0]
        return self._chunk[1]
