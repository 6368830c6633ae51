"""Which forwards run side by side, and how many at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..hardware import available_memory
from .batching import FORWARD_COST, FORWARD_COST_CPU, batches_by_length
from .placement import execution_devices, input_device
from .source import Source
from .workers import Reading


def reading_of(
    sources: Sequence[Source],
    members: list[int],
    texts: dict[str, Any],
    counts: np.ndarray,
    batch_size: int,
) -> Reading:
    """What the model of the sources `members` is to read."""
    model = sources[members[0]].model
    # By where it computes: a model that is partly offloaded gives the bits of a whole one.
    on_cpu = input_device(model).type == "cpu"
    cost = FORWARD_COST_CPU if on_cpu else FORWARD_COST
    batches = list(batches_by_length(texts, members, counts, batch_size, cost))
    shared = torch.get_num_threads() > 1 and {d.type for d in execution_devices(model)} == {"cpu"}
    return Reading(model, members, batches, shared=shared)


def most_workers(lanes: Sequence[Sequence[Reading]]) -> int:
    """As many as there are threads, if memory has room for what each one's batch needs."""
    needed = 1
    for reading in (reading for lane in lanes for reading in lane):
        config = reading.model.config.get_text_config(decoder=True)
        width = getattr(config, "hidden_size", 0)
        inner = getattr(config, "intermediate_size", None) or 4 * width
        if isinstance(inner, int):
            most = max((batch.input_ids.numel() for batch in reading.batches), default=0)
            needed = max(needed, most * (4 * width + 3 * inner) * reading.model.dtype.itemsize)
    return min(torch.get_num_threads(), max(1, available_memory() // (2 * needed)))


def lanes_of(sources: Sequence[Source], texts: dict[str, Any]) -> list[list[list[int]]]:
    """Which forwards run side by side: lanes of forwards, a forward being the sources it serves.

    Sources that share a model and read the same tokens share a forward. Models that share an
    accelerator take turns, and so do those on the CPU where it has fewer threads than models.
    """
    forwards: dict[int, list[list[int]]] = {}
    for s, source in enumerate(sources):
        of_model = forwards.setdefault(id(source.model), [])
        for members in of_model:
            if texts[f"input_ids_{members[0]}"] == texts[f"input_ids_{s}"]:
                members.append(s)
                break
        else:
            of_model.append([s])

    on_cpu: list[list[list[int]]] = []
    elsewhere: list[tuple[set[torch.device], list[list[int]]]] = []
    for of_model in forwards.values():
        devices = execution_devices(sources[of_model[0][0]].model)
        devices = {device for device in devices if device.type != "cpu"}
        if not devices:
            on_cpu.append(of_model)
            continue
        sharing = [lane for lane in elsewhere if lane[0] & devices]
        elsewhere = [lane for lane in elsewhere if not lane[0] & devices]
        devices = devices.union(*(used for used, _ in sharing))
        elsewhere.append((devices, [f for _, before in sharing for f in before] + of_model))
    count = min(len(on_cpu), torch.get_num_threads())
    lanes = [[f for of_model in on_cpu[i::count] for f in of_model] for i in range(count)]
    return lanes + [lane for _, lane in elsewhere]
