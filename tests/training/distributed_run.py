"""Two ranks that train."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from sparsify_crosscoder.world import current_world
from tests.support.crosscoders import fitting_widths
from tests.support.streams import planted_data
from tests.support.training import make_trainer


def train(arch: str, folder: Path) -> dict[str, Any]:
    """Train on this rank's part of the pairs; returns weights, counters and summary."""
    world = current_world()
    widths = fitting_widths(arch, [12, 9], [10, 10])
    data = planted_data(widths, rank=world.rank, world_size=world.size, dtype=torch.float64)
    # float64, so that the order of summation does not change what is selected.
    trainer = make_trainer(folder, arch, data=data, max_steps=12, dead_feature_threshold=100)
    for sae in trainer.saes.values():
        sae.double()
    trainer.optimizers, trainer.lr_schedulers = trainer._make_optimizers()
    summary = trainer.fit()
    name, sae = next(iter(trainer.saes.items()))
    return {
        "state": sae.state_dict(),
        "since": trainer.num_tokens_since_fired[name],
        "summary": summary,
    }


def train_in_two_ranks(folder: Path, arches: list[str]) -> None:
    """Train every architecture; each rank leaves what it came to in `folder`."""
    torch.multiprocessing.start_processes(_rank, (folder, arches), nprocs=2, start_method="fork")


def _rank(rank: int, folder: Path, arches: list[str]) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for arch in arches:
        result = train(arch, folder / arch)
        torch.save(result, folder / f"{arch}-rank{rank}.pt")
    dist.destroy_process_group()
