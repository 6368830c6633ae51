"""Places in a model: its layers, the module that a hookpoint names, and what comes out there."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .placement import input_device


def layer_list(model: PreTrainedModel) -> tuple[str, int]:
    """Where the text model keeps its layers, relative to `model.base_model`, and how many.

    In a multimodal model these are the language model's layers, not the vision or audio tower's.
    Raises ValueError if there is no such list or more than one.
    """
    base = model.base_model
    num_layers = num_layers_of(model.config)
    decoder = model.get_decoder()
    prefix = next(name for name, module in base.named_modules() if module is decoder)
    found: list[str] = []
    for name, module in decoder.named_modules(prefix=prefix):
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not nested:
            found.append(name)
    if len(found) != 1:
        candidates = f" (candidates: {', '.join(found)})" if found else ""
        raise ValueError(
            f"Cannot tell which modules of {type(base).__name__} are its {num_layers} "
            f"layers{candidates}; give hookpoints instead."
        )
    return found[0], num_layers


def normalize_hookpoint(model: PreTrainedModel, hookpoint: str, *, name: str = "") -> str:
    """The hookpoint relative to `model.base_model`, given in that or in the causal LM's spelling.

    Raises ValueError with close matches if the model has no such module.
    """
    modules = dict(model.base_model.named_modules())
    stripped = hookpoint.removeprefix(f"{model.base_model_prefix}.")
    for candidate in (hookpoint, stripped):
        if candidate and candidate in modules:
            return candidate
    matches = difflib.get_close_matches(stripped, modules, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(matches)}?" if matches else "No module has a similar name."
    raise ValueError(
        f"{name or type(model).__name__} has no module {hookpoint!r}. {hint} "
        "Hookpoints are relative to the base model, such as layers.16 or h.3."
    )


def is_causal(output: Tensor) -> bool:
    """Whether what `try_hookpoint` gives shows that tokens do not see later ones."""
    one, other = output[:, : output.shape[1] // 2].float()
    # Mixtures of experts round a token by who else is there; what is not causal differs by more.
    return bool(((one - other).norm(dim=1) <= 1e-3 * one.norm(dim=1)).all())


@torch.inference_mode()
def try_hookpoint(model: PreTrainedModel, hookpoint: str, *, name: str = "") -> Tensor:
    """A hookpoint's output [2, 8, width] for two texts that differ in their second half only.

    Raises ValueError if the module never runs or its output is not [batch, position, width].
    """
    outputs: list[Any] = []
    handle = model.base_model.get_submodule(hookpoint).register_forward_hook(
        lambda module, args, output: outputs.append(first_tensor(output))
    )
    try:
        size = model.config.get_text_config(decoder=True).vocab_size
        ids = torch.linspace(0, size - 1, 12).long()
        ids = torch.stack([ids[:8], torch.cat([ids[:4], ids[8:]])])
        model(input_ids=ids.to(input_device(model)), use_cache=False)
    finally:
        handle.remove()
    name = name or type(model).__name__
    if not outputs:
        raise ValueError(
            f"Module {hookpoint!r} of {name} takes no part in reading text; "
            "use one that does, such as a layer."
        )
    shape = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else ()
    if len(outputs) > 1 or len(shape) != 3 or shape[:2] != (2, 8):
        raise ValueError(
            f"Module {hookpoint!r} of {name} does not give one vector per token: its output has "
            f"shape {shape or 'unknown'} (runs: {len(outputs)}) for 2 texts of 8 tokens."
        )
    return outputs[0]


def first_tensor(output: Any) -> Any:
    """A module's hidden states: its output, or the first member where it returns a tuple."""
    return output[0] if isinstance(output, tuple) else output


def num_layers_of(config: Any) -> int:
    """How many layers a text model has by its config."""
    return config.get_text_config(decoder=True).num_hidden_layers


def check_layer(name: str, layer: int, num_layers: int) -> None:
    """Raise ValueError for a layer that a model does not have."""
    if not 0 <= layer < num_layers:
        raise ValueError(
            f"{name} has {num_layers} layers, numbered 0 to {num_layers - 1}; there is no layer "
            f"{layer}."
        )
