"""Where models are: on one device, on one each, or spread over several by accelerate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..hardware import pick_device

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways of transformers to spread a model over the devices that there are."""


@dataclass(frozen=True)
class Placement:
    """Where the models of sources are put."""

    device: torch.device | str

    devices: Sequence[torch.device | str] = ()
    """A device for each source instead, in order."""

    device_map: str | None = None
    """One of DEVICE_MAPS: transformers spreads each model over all devices that there are, and over
    the CPU's memory and the disk where those do not suffice."""


def source_devices(
    keys: Sequence[tuple[str, str | None]], placement: Placement
) -> list[torch.device]:
    """The device of each source, given what identifies its model; models are loaded once.

    Raises ValueError for an unknown `device_map`, one beside `devices`, and devices that are not
    there, of a wrong number, or different for one model.
    """
    device, devices = pick_device(placement.device), placement.devices
    device_map = placement.device_map
    if device_map is not None and device_map not in DEVICE_MAPS:
        raise ValueError(f"Unknown device_map {device_map!r}: use {', '.join(DEVICE_MAPS)}.")
    if not devices:
        return [device] * len(keys)
    if device_map is not None:
        raise ValueError("Give devices or a device_map, not both.")
    if len(devices) != len(keys):
        raise ValueError(
            f"{len(keys)} models ({', '.join(name for name, _ in keys)}) need {len(keys)} devices "
            f"in the same order, got {len(devices)}: {', '.join(map(str, devices))}."
        )
    places = [pick_device(one) for one in devices]
    first: dict[tuple[str, str | None], torch.device] = {}
    for key, place in zip(keys, places, strict=True):
        if first.setdefault(key, place) != place:
            raise ValueError(
                f"{key[0]} is loaded once for all the sources that name it and cannot be on both "
                f"{first[key]} and {place}; give these sources one device."
            )
    return places


def module_device(module: nn.Module) -> torch.device | None:
    """Where a module computes, also while its weights are offloaded; None if it has no weights."""
    for hook in accelerate_hooks(module):
        if getattr(hook, "execution_device", None) is not None:
            return torch.device(hook.execution_device)
    return next((weight.device for weight in module.parameters()), None)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model wants its tokens: the device of its embedding."""
    return module_device(model.get_input_embeddings()) or model.device


def execution_devices(model: PreTrainedModel) -> set[torch.device]:
    """All devices on which parts of a model compute."""
    found = {module_device(module) for module in model.modules()}
    return {device for device in found if device is not None and device.type != "meta"}


def accelerate_hooks(module: nn.Module) -> list[Any]:
    """What accelerate put around a module of a model that it dispatched."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
