"""A PEFT adapter put on its base: a model of its own over the base's weights.

The base's modules are copied, its weights are not, and peft puts the adapter into the copy. So the
base stays as it is, bit for bit and in every thread, and the adapter is on wherever its own model
runs: nothing is switched, and the weights are in memory once.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .adapter_name import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_file, adapter_folder
from .model_files import WEIGHTS, ModelError, read_object, shortened, tensor_names
from .model_name import ModelName
from .shared_weights import copy_of

if TYPE_CHECKING:
    from peft import PeftConfig

_PREFIX = "base_model.model."
_NAME = "default"
_PICKLED = "adapter_model.bin"
# These begin by changing the base's own weights.
_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_adapter(model: ModelName, adapter: ModelName) -> None:
    """Raise ModelError for an adapter whose files are absent or damaged, or of a kind not read."""
    folder = _fetched(model, adapter)
    tensor_names(model.name, folder / ADAPTER_WEIGHTS)
    _read_config(model, folder)


def with_adapter(base: PreTrainedModel, model: ModelName, adapter: ModelName) -> PreTrainedModel:
    """The model that an adapter makes of its base, whose weights it shares; the base stays.

    Raises ModelError where the adapter's files are absent or damaged, it is of a kind that is not
    read, or does not fit the base, and for a base whose weights cannot be shared: one that is
    quantised or spread over several devices.
    """
    folder = _fetched(model, adapter)
    tensor_names(model.name, folder / ADAPTER_WEIGHTS)
    config = _read_config(model, folder)
    adapted = copy_of(base)
    if adapted is None:
        raise ModelError(
            f"Cannot load the model {model.name!r}: an adapter shares its base's weights, which is "
            "not possible in 8 bits, quantised, or with a --device_map. Leave that off, or merge "
            "the adapter with peft (`merge_and_unload`), save that, and name its folder."
        )
    state = {
        name.removeprefix(_PREFIX): weight
        for name, weight in load_file(folder / ADAPTER_WEIGHTS, str(base.device)).items()
    }
    whole = _with_head(adapted, state, model.trust_remote_code)
    head = _tied_head(whole)
    _resize(whole, state)
    _put_in(whole, config, state, model.name)
    if head is not None and isinstance(embedding := whole.get_input_embeddings(), nn.Embedding):
        head.weight = embedding.weight
    _cast(adapted, base)
    adapted.name_or_path = model.name
    return adapted.eval().requires_grad_(False)


def _fetched(model: ModelName, adapter: ModelName) -> Path:
    """The folder that has an adapter's config and weights."""
    file = adapter_file(adapter, ADAPTER_WEIGHTS)
    if file is not None:
        return file.parent
    folder = adapter_folder(adapter)
    there = [] if folder is None else [file.name for file in folder.iterdir()]
    reason = f"the adapter has no weights ({ADAPTER_WEIGHTS})"
    if _PICKLED in there:
        reason += f", only pickled ones ({_PICKLED}), which can run any code and are not read"
    elif any(f"{w}{end}" in there for w in WEIGHTS for end in ("", ".index.json")):
        raise ModelError(
            f"Cannot load the model {model.name!r}: its folder holds the config of an adapter "
            f"beside a whole model. Move '{ADAPTER_CONFIG}' away to read the model."
        )
    raise ModelError(
        f"Cannot load the model {model.name!r}: {reason}. Save the adapter again with peft "
        "(`save_pretrained`), or download it again."
    )


def _read_config(model: ModelName, folder: Path) -> PeftConfig:
    """An adapter's config; raises ModelError for kinds that cannot be put into a base's layers."""
    from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig

    read_object(model.name, folder / ADAPTER_CONFIG)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"Cannot load the model {model.name!r}: '{folder / ADAPTER_CONFIG}' is no config that "
            f"this version of peft reads ({error}). Restore it, or upgrade peft."
        ) from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    merge = "Merge it into its base with peft, save that, and name its folder."
    if config.is_prompt_learning:
        raise ModelError(
            f"Cannot load the model {model.name!r}: an adapter of the kind {kind} puts tokens of "
            "its own before the text, so its positions are not those of the text. Only adapters "
            "that change a model's layers, such as LoRA, can be compared."
        )
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(_CHANGING):
        raise ModelError(
            f"Cannot load the model {model.name!r}: a LoRA that was begun with {start!r} changes "
            f"the base's own weights, which are shared. {merge}"
        )
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(cast(Any, config.peft_type))
    own_forward = kind in ("XLORA", "POLY", "OSF") or getattr(
        config, "alora_invocation_tokens", None
    )
    if tuner is None or tuner.uses_shared_state or own_forward or config.is_adaption_prompt:
        raise ModelError(
            f"Cannot load the model {model.name!r}: an adapter of the kind {kind} is more than "
            f"layers put beside those of its base. {merge}"
        )
    config.inference_mode = True
    return config


def _with_head(
    adapted: PreTrainedModel, state: dict[str, Tensor], trust_remote_code: bool
) -> PreTrainedModel:
    """The model in which an adapter's names are what they were in training.

    That is mostly the causal language model: one without weights is put around what has no head.
    """
    prefix = adapted.base_model_prefix
    if not any(name.startswith(f"{prefix}.") for name in state):
        return cast(PreTrainedModel, adapted.base_model)
    if adapted.base_model is not adapted:
        return adapted
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        whole = AutoModelForCausalLM.from_config(
            adapted.config, trust_remote_code=trust_remote_code
        )
    setattr(whole, whole.base_model_prefix, adapted)
    return whole


def _tied_head(whole: PreTrainedModel) -> nn.Module | None:
    """The head of a model that has the weight of its embedding, if it has."""
    head = whole.get_output_embeddings()
    tied = head is not None and head.weight is whole.get_input_embeddings().weight
    return head if tied else None


def _resize(whole: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Give a model as many vectors for tokens as an adapter that was saved with its own has."""
    embedding: Any = whole.get_input_embeddings()
    path = next(name for name, module in whole.named_modules() if module is embedding)
    own = state.get(f"{path}.weight", state.get(f"{path}.base_layer.weight"))
    if own is None or len(own) == len(embedding.weight):
        return
    tied = _tied_head(whole)
    for part in (embedding, whole.get_output_embeddings()):
        if part is None:
            continue
        for name, old in list(part.named_parameters(recurse=False)):
            new = old.new_zeros(len(own), *old.shape[1:])
            new[: len(old)] = old[: len(own)]
            setattr(part, name, nn.Parameter(new, requires_grad=False))
        setattr(part, "num_embeddings" if part is embedding else "out_features", len(own))
    if tied is not None:
        tied.weight = embedding.weight
    config: Any
    for config in (whole.config, whole.base_model.config):
        config.get_text_config(decoder=True).vocab_size = len(own)


def _put_in(
    whole: PreTrainedModel, config: PeftConfig, state: dict[str, Tensor], name: str
) -> None:
    """Put an adapter's layers and weights into a model; raises ModelError if they do not fit it."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    other = (
        "It is an adapter of another model than this base, or damaged: name its own base "
        "(BASE+ADAPTER), or copy it again."
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, whole, _NAME, low_cpu_mem_usage=True)
            loaded = set_peft_model_state_dict(whole, state, _NAME, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError, KeyError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = " ".join(said[1:2] or said).rstrip(".")
        raise ModelError(
            f"Cannot load the model {name!r}: the adapter does not fit its base ({detail}). {other}"
        ) from error
    base = whole.base_model
    missing = [n for n, weight in base.named_parameters() if weight.is_meta]
    for problem, names in (
        ("has no weights for", missing),
        ("has weights that have no place in its base:", list(loaded.unexpected_keys)),
    ):
        if names:
            raise ModelError(
                f"Cannot load the model {name!r}: the adapter {problem} {shortened(names)}. {other}"
            )


def _cast(adapted: PreTrainedModel, base: PreTrainedModel) -> None:
    """Compute as peft does: the adapter in float32, what replaces base weights in their dtype."""
    from peft.tuners.tuners_utils import cast_adapter_dtype

    cast_adapter_dtype(adapted, _NAME)
    shared = {id(weight) for weight in base.parameters()}
    for name, weight in adapted.named_parameters():
        replaces = "modules_to_save" in name or "trainable_tokens" in name or _NAME not in name
        if id(weight) not in shared and replaces and weight.is_floating_point():
            weight.data = weight.data.to(base.dtype)
