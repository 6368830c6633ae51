"""Sources: the language models to compare, each read at one hookpoint."""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_accelerate_available, is_bitsandbytes_available
from xxhash import xxh3_128

from ..hardware import Purpose, pick_device, pick_model_dtype
from .limits import warn_of_tokens_without_vectors
from .loading import ModelName, check_weights, load_config, load_pretrained, load_tokenizer
from .model_identity import commit_of
from .placement import accelerate_hooks, input_device, source_devices

DIGEST_VALUES = 1024
"""How many values of each weight `sampled_digest` reads."""

_DIGESTED_AT_ONCE = 2**24  # values


@dataclass
class Source:
    """One model read at one place."""

    name: str
    """Hub id or folder that the model was loaded from."""

    hookpoint: str
    """Module whose output is read, relative to `model.base_model`: `layers.16`, `h.3`."""

    model: PreTrainedModel
    """Base model without a language-modelling head, in eval mode, without gradients."""

    tokenizer: Any
    """The model's fast tokenizer."""

    width: int
    """Last dimension of the hookpoint's output."""

    causal: bool = False
    """Whether later tokens do not reach the hookpoint, so that padding behind a text needs no mask:
    attention without one is faster."""

    revision: str | None = None
    """The hub's commit that the model is of; none for a folder."""


def load_sources(
    names: Sequence[str],
    *,
    hookpoints: Sequence[str] = (),
    layers: Sequence[int] = (),
    device: torch.device | str,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    revisions: Sequence[str | None] = (),
    load_in_8bit: bool = False,
    token: str | None = None,
    devices: Sequence[torch.device | str] = (),
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> list[Source]:
    """Load every source's model (without its head) and tokenizer.

    `hookpoints` or `layers` gives one place per source, in order; without either each model is read
    at its middle layer. Hookpoints are relative to `model.base_model`; the causal LM's spelling
    (`model.layers.16`, `transformer.h.3`) is accepted too. `revision` belongs to `names[0]` alone;
    `revisions` gives one per source instead, in order. Model and tokenizer are of one commit even
    if a branch moves meanwhile. A model named twice (at one revision) is loaded once and shared.

    Models are put on `device`; `devices` gives one per source instead, in order. `device_map`, one
    of DEVICE_MAPS, has transformers spread each model over all devices that there are, and over
    the CPU's memory and the disk where those do not suffice. The dtype "auto" is chosen for each
    model by where it is (with a `device_map`, by `device`). Code that comes with a model runs only
    with `trust_remote_code`.

    Raises ValueError for fewer than two models, a model or tokenizer that cannot be loaded or whose
    weights are not those that its config.json describes (see `load_pretrained`), a tokenizer
    without character offsets, a wrong number of hookpoints or layers, a layer out of range, and a
    hookpoint that does not exist or gives no [batch, position, width] activations; for devices that
    are not there, of a wrong number, or different for a shared model; for `devices` together with a
    `device_map`; and where accelerate or bitsandbytes is missing.
    """
    if len(names) < 2:
        raise ValueError(
            f"A crosscoder compares at least two models, got {len(names)} ({', '.join(names)}). "
            "Name the others after --partners; the same model may be named twice."
        )
    if hookpoints and layers:
        raise ValueError("Give hookpoints or layers, not both.")
    for option, places in (("hookpoint", hookpoints), ("layer", layers)):
        if places and len(places) != len(names):
            raise ValueError(
                f"{len(names)} models ({', '.join(names)}) need {len(names)} {option}s in the same "
                f"order, got {len(places)}: {', '.join(map(str, places))}."
            )
    if revisions and len(revisions) != len(names):
        raise ValueError(
            f"{len(names)} models ({', '.join(names)}) need {len(names)} revisions in the same "
            f"order, got {len(revisions)}."
        )
    keys = [
        ModelName(name, own, token, trust_remote_code)
        for name, own in zip(
            names, revisions or [revision, *[None] * (len(names) - 1)], strict=True
        )
    ]
    places = [(key.name, key.revision) for key in keys]
    placed = source_devices(places, pick_device(device), devices, device_map)
    _check_packages(load_in_8bit, device_map)

    # Configs and tokenizers first: they are small, and most mistakes show in them.
    tokenizers: dict[ModelName, Any] = {}
    stored: dict[ModelName, torch.dtype | None] = {}
    commits: list[str | None] = []
    for i, key in enumerate(keys):
        config = load_config(key)
        if layers:
            _check_layer(key.name, layers[i], _num_layers(config))
        commits.append(commit_of(key.name, key.revision))
        key = keys[i] = replace(key, revision=commits[i] or key.revision)
        stored[key] = stored_dtype(config)
        if key not in tokenizers:
            tokenizers[key] = load_tokenizer(key)
            _check_fast(key.name, tokenizers[key])
    for key in tokenizers:
        check_weights(key)

    models: dict[ModelName, PreTrainedModel] = {}
    sources = []
    for i, key in enumerate(keys):
        if key not in models:
            own_dtype = pick_model_dtype(
                placed[i], dtype, load_in_8bit=load_in_8bit, stored=stored[key]
            )
            models[key] = load_pretrained(
                key,
                AutoModel,
                place=device_map or placed[i],
                dtype=own_dtype,
                load_in_8bit=load_in_8bit,
            )
            warn_of_tokens_without_vectors(key.name, models[key], tokenizers[key])
        model = models[key]
        if hookpoints:
            hookpoint = normalize_hookpoint(model, hookpoints[i], name=key.name)
        else:
            path, num_layers = layer_list(model)
            hookpoint = f"{path}.{layers[i] if layers else num_layers // 2}"
        output = try_hookpoint(model, hookpoint, name=key.name)
        width, causal = output.shape[2], is_causal(output)
        place = (key.name, hookpoint, model, tokenizers[key], width, causal)
        sources.append(Source(*place, commits[i]))
    return sources


def load_language_model(
    name: str,
    *,
    device: torch.device | str,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    load_in_8bit: bool = False,
    token: str | None = None,
    purpose: Purpose = "write",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """A causal language model with its head, in eval mode without gradients, and its tokenizer.

    What it is for decides on the dtype "auto": to write text, or to read it alone.
    Raises ValueError if either cannot be loaded, as `load_sources` does.
    """
    device = pick_device(device)
    _check_packages(load_in_8bit)
    key = ModelName(name, revision, token, trust_remote_code)
    stored = stored_dtype(load_config(key))
    dtype = pick_model_dtype(
        device, dtype, load_in_8bit=load_in_8bit, purpose=purpose, stored=stored
    )
    tokenizer = load_tokenizer(key)
    model = load_pretrained(
        key, AutoModelForCausalLM, place=device, dtype=dtype, load_in_8bit=load_in_8bit
    )
    warn_of_tokens_without_vectors(name, model, tokenizer)
    return model, tokenizer


def stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype that a checkpoint's config says it is kept in."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)


def load_base_model(
    name: str, *, dtype: torch.dtype, revision: str | None = None, token: str | None = None
) -> PreTrainedModel:
    """A model without its head in the CPU's memory; raises ValueError if it cannot be loaded."""
    return load_pretrained(ModelName(name, revision, token), place=torch.device("cpu"), dtype=dtype)


def load_fast_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A model's fast tokenizer; raises ValueError if it cannot be loaded, or is a slow one."""
    tokenizer = load_tokenizer(ModelName(name, revision, token, trust_remote_code))
    _check_fast(name, tokenizer)
    return tokenizer


def layer_list(model: PreTrainedModel) -> tuple[str, int]:
    """Where the text model keeps its layers, relative to `model.base_model`, and how many.

    In a multimodal model these are the language model's layers, not the vision or audio tower's.
    Raises ValueError if there is no such list or more than one.
    """
    base = model.base_model
    num_layers = _num_layers(model.config)
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


def hookpoint_width(model: PreTrainedModel, hookpoint: str, *, name: str = "") -> int:
    """Width of a hookpoint's output, found by a forward over 2 x 8 tokens.

    Raises ValueError if the module never runs or its output is not [batch, position, width].
    """
    return try_hookpoint(model, hookpoint, name=name).shape[2]


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


def first_tensor(output: Any) -> Any:
    """A module's hidden states: its output, or the first member where it returns a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _num_layers(config: Any) -> int:
    return config.get_text_config(decoder=True).num_hidden_layers


def _check_layer(name: str, layer: int, num_layers: int) -> None:
    if not 0 <= layer < num_layers:
        raise ValueError(
            f"{name} has {num_layers} layers, numbered 0 to {num_layers - 1}; there is no layer "
            f"{layer}."
        )


def _check_packages(load_in_8bit: bool, device_map: str | None = None) -> None:
    if device_map is not None and not is_accelerate_available():
        raise ValueError("A device_map needs accelerate: `pip install accelerate`.")
    if load_in_8bit and not is_bitsandbytes_available():
        raise ValueError("Loading in 8 bits needs bitsandbytes: `pip install bitsandbytes`.")


def _check_fast(name: str, tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {name!r} ({type(tokenizer).__name__}) gives no character offsets, "
            "without which texts cannot be aligned: a fast tokenizer (tokenizer.json) is needed."
        )
