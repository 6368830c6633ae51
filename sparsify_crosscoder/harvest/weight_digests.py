"""Checksums of a loaded model's weights."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from xxhash import xxh3_128

from .placement import accelerate_hooks

DIGEST_VALUES = 1024
"""How many values of each weight `sampled_digest` reads."""
_DIGESTED_AT_ONCE = 2**24  # values


def weights_digest(model: PreTrainedModel) -> str:
    """Checksum of a model's weights, the same wherever they are: on any device, or offloaded.

    Of every parameter and stored buffer of `model.base_model` it reads the name, shape, dtype and
    all values, of 8-bit weights the scales too. So a head does not matter, and another dtype or
    quantisation does.
    """
    digest = xxh3_128()
    for name, weight in _stored_tensors(model.base_model):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        for values in weight.detach().reshape(-1).split(_DIGESTED_AT_ONCE):
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return f"xxh3-128:{digest.hexdigest()}"


def sampled_digest(model: PreTrainedModel) -> str:
    """The checksum by which stores of earlier versions know a model.

    As `weights_digest`, of up to DIGEST_VALUES values of each weight, spread evenly: a change of a
    few values can be missed.
    """
    digest = hashlib.sha256()
    for name, weight in _stored_tensors(model.base_model):
        values = weight.detach().reshape(-1)
        count = min(len(values), DIGEST_VALUES)
        spread = torch.arange(count) * (len(values) - 1) // max(count - 1, 1)
        sample = values[spread.to(values.device)].cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, persistent buffers and scales of 8-bit weights, each with its values."""
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        volatile = module._non_persistent_buffers_set
        buffers = module.named_buffers(recurse=False)
        own |= {name: buffer for name, buffer in buffers if name not in volatile}
        for name, tensor in own.items():
            path = f"{prefix}.{name}" if prefix else name
            yield path, _with_values(module, name, tensor)
            scales = getattr(tensor, "SCB", None)
            if tensor.dtype == torch.int8 and scales is None:  # bitsandbytes moves them once used
                scales = getattr(getattr(module, "state", None), "SCB", None)
            if scales is not None:
                yield f"{path}.SCB", scales


def _with_values(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A module's own parameter or buffer, from where accelerate keeps it if it is offloaded."""
    if tensor.device.type != "meta":
        return tensor
    for hook in accelerate_hooks(module):
        if getattr(hook, "weights_map", None) is not None:
            return hook.weights_map[name]
    raise ValueError(f"The values of {name!r} in a {type(module).__name__} are not loaded.")
