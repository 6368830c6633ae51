"""Weights of a checkpoint that do not fit the model that was made for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .model_files import Checkpoint, shortened, wrapper_in

# Buffers that older versions of transformers wrote, and scales that only caches of keys need.
_HARMLESS = re.compile(
    r"(inv_freq|position_ids|masked_bias|causal_mask|attn\.bias|attention\.bias|embed_positions"
    r"\.weights|decoder\.version|_extra_state|\b[kv]_scale|\b[kv]_zero_point)$"
)
# What a quantised weight cannot do without; other extras belong to quantised activations.
_NEEDED = re.compile(r"(\.weight|\.bias|weight_scale(_inv)?|_scales|_blocks)$")


def misfit(loaded: PreTrainedModel, info: dict[str, Any], *, quantised: bool) -> str | None:
    """Which weights are missing or left over that reading text needs, if any."""
    used = _used_in_reading(loaded)
    missing = sorted(key for key in info["missing_keys"] if used(key))
    if missing:
        return f"{len(missing)} weights are MISSING in its files: {shortened(missing)}"
    modules = dict(loaded.named_modules())
    has_head = loaded.get_output_embeddings() is not None
    left_over = []
    for key in sorted(info["unexpected_keys"]):
        path, ancestor = _place(key, loaded.base_model_prefix, modules)
        extra = quantised and not _NEEDED.search(key)
        if (
            ancestor
            and used(path)
            and not (extra or _HARMLESS.search(key) or _predicts_ahead(path, loaded))
            and (has_head or "lm_head" not in path.split("."))
        ):
            left_over.append(key)
    if left_over:
        return (
            f"{len(left_over)} weights in its files are UNEXPECTED, they have no place in the "
            f"model that config.json describes: {shortened(left_over)}"
        )
    return None


def _place(key: str, prefix: str, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """What a checkpoint's name is in the model, and the innermost module there that it is of.

    That is "" for the model itself and for its base model.
    """
    places = []
    for path in (key, key.removeprefix(f"{prefix}."), f"{prefix}.{key}"):
        ancestor = path
        while ancestor not in modules:
            ancestor = ancestor.rpartition(".")[0]
        places.append((path, "" if ancestor == prefix else ancestor))
    return max(places, key=lambda place: len(place[1]))


def _used_in_reading(model: PreTrainedModel) -> Callable[[str], bool]:
    """Tells of a weight's name whether text is read with it.

    A pooler is not, nor are the towers of a multimodal model for other things than text.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    decoder = model.get_decoder()
    parts = [""]
    if decoder not in (model, model.base_model) and not model.config.is_encoder_decoder:
        embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
        parts = [f"{paths[id(part)]}." for part in (decoder, *embeddings) if id(part) in paths]
    return lambda key: "pooler" not in key.split(".") and key.startswith(tuple(parts))


def _predicts_ahead(path: str, model: PreTrainedModel) -> bool:
    """Whether a name is of the layers that DeepSeek and others put behind the last."""
    settings = model.config.get_text_config(decoder=True)
    layers, more = settings.num_hidden_layers, getattr(settings, "num_nextn_predict_layers", 0)
    numbers = re.findall(r"\.?layers\.(\d+)\.", path)
    return bool(numbers) and layers <= int(numbers[0]) < layers + (more or 0)


def what_misfits(name: str, problem: str, checkpoint: Checkpoint, method: str | None) -> str:
    """The error for a model whose checkpoint, quantised by `method`, has such a misfit."""
    wrappers = {found for tensor in checkpoint.names if (found := wrapper_in(tensor))}
    remedy = "Restore the model's own config.json and files of weights."
    if wrappers:
        remedy = (
            f"Some names have a '{min(wrappers)}', which a wrapper (torch.compile, DDP, peft) puts "
            "there: unwrap the model and save it again with save_pretrained."
        )
    elif problem.endswith("MISSING in its files: lm_head.weight"):
        remedy = (
            "It was saved without its head, which writing needs: save it again as the causal "
            "language model (AutoModelForCausalLM) that it is of."
        )
    elif checkpoint.prefix and len(checkpoint.names) > 1 and "MISSING" in problem:
        remedy = (
            f"All names in them begin with '{checkpoint.prefix}': if a wrapper put that there, "
            "unwrap the model and save it again with save_pretrained."
        )
    elif method is not None:
        remedy = f"It is quantised ({method}): load another version of it, or a dequantised one."
    return f"Cannot load the model {name!r}: {problem}. {remedy}"
