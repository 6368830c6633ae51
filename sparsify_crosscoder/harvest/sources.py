"""Loading the language models that are compared, and others that only read or write."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_accelerate_available, is_bitsandbytes_available

from ..hardware import Purpose, pick_device, pick_model_dtype
from ..world import current_world
from .adapter_name import parts_of, said
from .heads import Head, Heads, has_head, share_vocabulary
from .hookpoints import (
    check_layer,
    is_causal,
    layer_list,
    normalize_hookpoint,
    num_layers_of,
    try_hookpoint,
)
from .limits import warn_of_tokens_without_vectors
from .loading import check_weights, load_config, load_pretrained, load_tokenizer
from .model_files import ModelError
from .model_identity import checkpoint_digest, commit_of, same_name
from .model_name import ModelName
from .placement import Placement, source_devices
from .source import Source


def load_sources(
    models: Sequence[str | ModelName],
    *,
    hookpoints: Sequence[str] = (),
    layers: Sequence[int] = (),
    placement: Placement,
    dtype: str | torch.dtype = "auto",
    load_in_8bit: bool = False,
    heads: Heads = "off",
) -> list[Source]:
    """Load every source's model (without its head, unless `heads` says so) and tokenizer.

    `hookpoints` or `layers` gives one place per source, in order; without either each model is read
    at its middle layer. Hookpoints are relative to `model.base_model`; the causal LM's spelling
    (`model.layers.16`, `transformer.h.3`) is accepted too. Model and tokenizer are of one commit
    even if a branch moves meanwhile. A model named twice (at one revision) is loaded once and
    shared; so are the weights of the base of adapters, which is said. The dtype "auto" is chosen
    for each model by where it is (with a `device_map`, by the placement's `device`).

    Raises ValueError for fewer than two models, a model or tokenizer that cannot be loaded or whose
    weights are not those that its config.json describes (see `load_pretrained`), a tokenizer
    without character offsets, a wrong number of hookpoints or layers, a layer out of range, and a
    hookpoint that does not exist or gives no [batch, position, width] activations; for devices that
    are not there, of a wrong number, or different for a shared model; for `devices` together with a
    `device_map`; and where accelerate or bitsandbytes is missing.
    """
    keys = [ModelName(model) if isinstance(model, str) else model for model in models]
    names = [key.name for key in keys]
    if len(keys) < 2:
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
    bases = shared_bases(keys)
    placed = source_devices([(base.name, base.revision) for base in bases], placement)
    _check_packages(load_in_8bit, placement.device_map)

    # Configs and tokenizers first: they are small, and most mistakes show in them.
    tokenizers: dict[ModelName, Any] = {}
    configs: dict[ModelName, Any] = {}
    commits: list[str | None] = []
    for i, key in enumerate(keys):
        config = load_config(key)
        if layers:
            check_layer(key.name, layers[i], num_layers_of(config))
        commits.append(commit_of(key.name, key.revision))
        key = keys[i] = replace(key, revision=commits[i] or key.revision)
        configs[key] = config
        if key not in tokenizers:
            tokenizers[key] = load_tokenizer(key)
            _check_fast(key.name, tokenizers[key])
    for key in tokenizers:
        check_weights(key)
    bases = shared_bases(keys)  # at the commits that were found

    with_heads = _with_heads(heads, configs, tokenizers)
    loaded: dict[ModelName, PreTrainedModel] = {}
    read: dict[ModelName, tuple[PreTrainedModel, Head | None]] = {}
    sources = []
    for i, key in enumerate(keys):
        if key not in loaded:
            own_dtype = pick_model_dtype(
                placed[i], dtype, load_in_8bit=load_in_8bit, stored=stored_dtype(configs[key])
            )
            how: dict[str, Any] = {
                "auto": AutoModelForCausalLM if with_heads else AutoModel,
                "place": placement.device_map or placed[i],
                "dtype": own_dtype,
                "load_in_8bit": load_in_8bit,
            }
            base = None
            if parts_of(key).adapter is not None:
                if current_world().rank == 0:
                    print(said(parts_of(key), key.name), file=sys.stderr)
                if bases[i] not in loaded:
                    loaded[bases[i]] = load_pretrained(bases[i], **how)
                base = loaded[bases[i]]
            loaded[key] = load_pretrained(key, **how, base=base)
            warn_of_tokens_without_vectors(key.name, loaded[key], tokenizers[key])
        if key not in read:
            whole = loaded[key]
            read[key] = _base_and_head(key.name, whole, heads) if with_heads else (whole, None)
        model, head = read[key]
        if hookpoints:
            hookpoint = normalize_hookpoint(model, hookpoints[i], name=key.name)
        else:
            path, num_layers = layer_list(model)
            hookpoint = f"{path}.{layers[i] if layers else num_layers // 2}"
        output = try_hookpoint(model, hookpoint, name=key.name)
        width, causal = output.shape[2], is_causal(output)
        place = (key.name, hookpoint, model, tokenizers[key], width, causal)
        sources.append(Source(*place, commits[i], head))
    return sources


def shared_bases(keys: Sequence[ModelName]) -> list[ModelName]:
    """The model whose weights each source has: of an adapter its base, under the name at which
    another source loads the same checkpoint if one does."""
    bases = [parts_of(key, fetch=True).base for key in keys]
    plain = [base for key, base in zip(keys, bases, strict=True) if key == base]
    shared: list[ModelName] = []
    for key, base in zip(keys, bases, strict=True):
        known = [] if key == base else [*plain, *shared]
        shared.append(next((other for other in known if _same_checkpoint(base, other)), base))
    return shared


def _same_checkpoint(one: ModelName, other: ModelName) -> bool:
    if same_name(one.name, other.name) and one.revision == other.revision:
        return True
    digests = [checkpoint_digest(model.name, model.revision) for model in (one, other)]
    return digests[0] is not None and digests[0] == digests[1]


def _with_heads(
    heads: Heads, configs: Mapping[ModelName, Any], tokenizers: Mapping[ModelName, Any]
) -> bool:
    """Whether models are to be loaded with heads; raises ValueError if one has to and has none."""
    headless = [key.name for key, config in configs.items() if not has_head(config)]
    if heads == "on" and headless:
        raise ModelError(
            "Next tokens (--kl on) need causal language models, with their heads: "
            f"{', '.join(headless)} is none. Leave --kl off."
        )
    wanted = heads == "on" or (heads == "auto" and share_vocabulary([*tokenizers.values()]))
    return wanted and not headless


def _base_and_head(
    name: str, model: PreTrainedModel, heads: Heads
) -> tuple[PreTrainedModel, Head | None]:
    """A language model's base, and its head by itself, without which "auto" does."""
    base: Any = model.base_model
    if getattr(model, "is_quantized", False):
        base.is_quantized = True
    try:
        return base, Head(model, name)
    except ModelError as error:
        if heads == "on":
            raise
        logging.getLogger(__name__).warning("%s The KL of next tokens is left out.", error)
        return base, None


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
