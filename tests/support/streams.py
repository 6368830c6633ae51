"""Pairs held in memory, for tests of what consumes a stream."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsify_crosscoder.harvest.report import HarvestReport
from sparsify_crosscoder.training.data import PairedData


class TensorStream:
    """Pairs from tensors, shuffled anew each epoch; ranks take uneven parts of every batch."""

    def __init__(self, data: list[Tensor], seed: int = 0, rank: int = 0, world_size: int = 1):
        self.data, self.seed, self.rank, self.world_size = data, seed, rank, world_size
        self.num_pairs = len(data[0])
        self.d_sources = [x.shape[1] for x in data]

    def order(self, epoch: int) -> Tensor:
        return torch.randperm(
            self.num_pairs, generator=torch.Generator().manual_seed(1000 * self.seed + epoch)
        )

    def batches(self, first: int, last: int, pairs_per_step: int) -> Iterator[list[Tensor]]:
        for step in range(first, last):
            places = torch.arange(step * pairs_per_step, (step + 1) * pairs_per_step)
            rows = torch.tensor(
                [int(self.order(int(p) // self.num_pairs)[int(p) % self.num_pairs]) for p in places]
            )
            yield [x[self.mine(rows)] for x in self.data]

    def texts(self, start: int, stop: int) -> None:
        return None

    def sample(self, num_pairs: int) -> list[Tensor]:
        return [x[self.mine(self.order(0)[:num_pairs])] for x in self.data]

    def report(self) -> HarvestReport:
        return HarvestReport()

    def mine(self, rows: Tensor) -> Tensor:
        if self.world_size == 1:
            return rows
        return rows[(rows % 3 == 0) if self.rank == 0 else (rows % 3 != 0)]


def planted_data(
    widths=(12, 9), pairs=1024, concepts=16, rank=0, world_size=1, held_out=256, dtype=torch.float32
) -> PairedData:
    """Pairs of sparse combinations of concepts, each seen by both sources or (the first) one."""
    generator = torch.Generator().manual_seed(7)
    acts = torch.rand(pairs + held_out, concepts, generator=generator)
    acts = acts * (torch.rand(acts.shape, generator=generator) < 0.15)
    data = []
    for width in widths:
        directions = torch.randn(concepts, width, generator=generator)
        noise = torch.randn(len(acts), width, generator=generator)
        data.append((acts @ directions * 5 + 3 + 0.05 * noise).to(dtype))
    sources = [
        {"name": f"model{s}", "hookpoint": f"layers.{s + 1}", "width": w}
        for s, w in enumerate(widths)
    ]
    return PairedData(
        TensorStream([x[:pairs] for x in data], 0, rank, world_size),
        TensorStream([x[pairs:] for x in data], 1, rank, world_size) if held_out else None,
        sources,
    )
