"""A copy of a model whose weights went through 8 bits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ...files import atomic_path
from ...harvest.loading import load_config, load_pretrained, load_tokenizer
from ...harvest.model_name import ModelName
from ...harvest.sources import stored_dtype

LEVELS = 127


def rounded(weight: Tensor) -> Tensor:
    """A weight `[out, in]` at 255 levels, evenly spaced up to the largest of each row, as absmax
    quantisation to int8 has them (Dettmers et al. 2022)."""
    scale = weight.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / LEVELS
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


def save_rounded(model_name: ModelName, folder: Path) -> None:
    """Save a model with the weights of its linear layers rounded, but its head; once.

    The dtype stays that of the checkpoint. Raises ValueError if the model cannot be loaded.
    """
    if folder.is_dir():
        return
    stored = stored_dtype(load_config(model_name)) or torch.float32
    model = load_pretrained(
        model_name, AutoModelForCausalLM, place=torch.device("cpu"), dtype=torch.float32
    )
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                module.weight.copy_(rounded(module.weight))
    nn.Module.to(model, stored)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        load_tokenizer(model_name).save_pretrained(temporary)
