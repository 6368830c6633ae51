"""What `train` and `harvest` do in every process of `torchrun`, or in the only one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..endings import ending
from ..files import atomic_write_json
from ..hardware import pick_device
from ..runs.config import RunConfig


@contextmanager
def rank_ending(goes_on: str, debug: bool) -> Iterator[None]:
    """`ending`, at once where other ranks may be waiting for this one."""
    try:
        with ending("sparsify", goes_on=goes_on, debug=debug):
            yield
    except SystemExit as stop:
        if dist.is_initialized() and dist.get_world_size() > 1 and stop.code:
            # To take leave of the others would be to wait for them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        raise


def on_device(job: Callable[[torch.device], dict[str, Any]], config: RunConfig) -> None:
    """Run `job` on this process's device, and write its result to `--json`."""
    device = pick_device(config.device)
    for name in config.devices:
        pick_device(name)
    distributed = os.environ.get("LOCAL_RANK") is not None
    if distributed:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Rank 0 may harvest for days while the others wait.
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(weeks=1)
        )
    rank = dist.get_rank() if distributed else 0
    with nullcontext() if rank == 0 else redirect_stdout(None):
        result = job(device)
    if config.json is not None and rank == 0:
        atomic_write_json(config.json, result)
    if distributed:
        dist.destroy_process_group()
