"""One rank of a distributed run: torchrun distributed_run.py ARCH FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.support.streams import planted_data
from tests.training.test_trainer import make_trainer


def main(arch: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    widths = (10, 10) if arch == "dsf" else (12, 9)
    data = planted_data(widths, rank=rank, world_size=size, dtype=torch.float64)
    # float64, so that the order of summation does not change what is selected.
    trainer = make_trainer(folder, arch, data=data, max_steps=12, dead_feature_threshold=100)
    for sae in trainer.saes.values():
        sae.double()
    trainer.optimizers, trainer.lr_schedulers = trainer._make_optimizers()
    summary = trainer.fit()
    name, sae = next(iter(trainer.saes.items()))
    folder.mkdir(exist_ok=True)
    result = {
        "state": sae.state_dict(),
        "since": trainer.num_tokens_since_fired[name],
        "summary": summary,
    }
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
