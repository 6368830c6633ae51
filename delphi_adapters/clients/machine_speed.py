"""What a device does in a short trial, for estimates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from sparsify_crosscoder.hardware import pick_model_dtype


def operations_per_second(device: torch.device) -> float:
    """Of a large product in the models' precision."""
    dtype = pick_model_dtype(device, "auto")
    a = torch.randn(1024, 1024, device=device, dtype=dtype)
    return 2 * 1024**3 / _seconds(device, lambda: a @ a)


def bytes_per_second(device: torch.device) -> float:
    """That are read and written."""
    x = torch.zeros(2**24, device=device)
    return 2 * x.nbytes / _seconds(device, lambda: x.add_(1.0))


def _seconds(device: torch.device, do: Callable[[], Any]) -> float:
    do()
    turns = []
    for _ in range(5):
        begun = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize()
        turns.append(time.perf_counter() - begun)
    return sorted(turns)[2]
