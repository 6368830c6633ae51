"""Loading language models as their checkpoints are, or saying in one line why they cannot be."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.hub import cached_file

from .model_files import (
    Checkpoint,
    ModelError,
    check_settings,
    first_line,
    model_folder,
    read_checkpoint,
    shortened,
    wrapper_in,
)

# Of these transformers can undo the quantisation, on any device.
_DEQUANTIZED = {"mxfp4", "fp8", "mxfp8"}
# Buffers that older versions of transformers wrote, and scales that only caches of keys need.
_HARMLESS = re.compile(
    r"(inv_freq|position_ids|masked_bias|causal_mask|attn\.bias|attention\.bias|embed_positions"
    r"\.weights|decoder\.version|_extra_state|\b[kv]_scale|\b[kv]_zero_point)$"
)
# What a quantised weight cannot do without; other extras belong to quantised activations.
_NEEDED = re.compile(r"(\.weight|\.bias|weight_scale(_inv)?|_scales|_blocks)$")
_MOST_ELEMENTS_PER_BYTE = 8
_SMALL_BUFFERS = 2**28


@dataclass(frozen=True)
class ModelName:
    """Which model, and how it may be fetched."""

    name: str
    revision: str | None = None
    token: str | None = None
    trust_remote_code: bool = False
    """Whether code that comes with the model may be run."""

    @property
    def _where(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def _is_local(self) -> bool:
        return Path(self.name).is_dir()


def load_config(model: ModelName) -> Any:
    """A model's config, once the files in its folder have been looked at.

    Raises ModelError, a ValueError, for whatever is wrong with it.
    """
    with _explained("model", model):
        _check_files(model, complete=False)
        try:
            return AutoConfig.from_pretrained(model.name, **model._where)
        except OSError:
            _check_hub_adapter(model)
            raise


def load_tokenizer(model: ModelName) -> Any:
    """A model's tokenizer. Raises ModelError, a ValueError, for whatever is wrong with it."""
    with _explained("tokenizer of", model):
        folder = model_folder(model.name, model.revision)
        if folder is not None:
            check_settings(model.name, folder)
        return AutoTokenizer.from_pretrained(model.name, **model._where)


def load_pretrained(
    model: ModelName,
    auto: Any = AutoModel,
    *,
    place: torch.device | str,
    dtype: torch.dtype,
    load_in_8bit: bool = False,
) -> PreTrainedModel:
    """A model with the weights of its checkpoint, in eval mode, without gradients.

    `place` is a device or a `device_map`. What is quantised on disk is loaded as transformers
    loads it; MXFP4 and FP8 are turned into `dtype` where no GPU computes in them. A prefix that a
    wrapper has put before the names of all weights is taken off.

    Raises ModelError, a ValueError, for whatever is wrong with the model: damaged or absent files,
    weights that are missing, left over or of another shape than config.json says, a quantisation
    that needs a package or device which is not there, code of its own without
    `trust_remote_code`, or too little memory.
    """
    with _explained("model", model):
        config = load_config(model)
        checkpoint = _check_files(model, complete=model._is_local)
        options: dict[str, Any] = {**model._where, "config": config, "dtype": dtype}
        options["device_map"] = {"": place} if isinstance(place, torch.device) else place
        method = _quantization(config, dequantize=not _computes_quantised(place))
        if load_in_8bit and method is not None:
            raise ModelError(
                f"Cannot load the model {model.name!r} in 8 bits: it is quantised already "
                f"({method}). Leave --load_in_8bit off."
            )
        if load_in_8bit:
            # It warns of every single product of a model that is not in float16.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        _check_size(model, auto, config, checkpoint, quantised=method is not None)
        loaded, info = _load(model, auto, checkpoint, options)
        problem = _problem(loaded, info, quantised=_is_known(method))
        if problem and not checkpoint.files:  # now the files are here
            checkpoint = _check_files(model, complete=False)
            if checkpoint.wrapper:
                loaded, info = _load(model, auto, checkpoint, options)
                problem = _problem(loaded, info, quantised=_is_known(method))
        if problem:
            raise ModelError(_says(model, problem, checkpoint, method))
    return loaded.eval().requires_grad_(False)


def check_weights(model: ModelName) -> None:
    """Raise ModelError where the files of a local model's weights are damaged or absent."""
    with _explained("model", model):
        _check_files(model, complete=model._is_local)


def _check_files(model: ModelName, *, complete: bool) -> Checkpoint:
    folder = model_folder(model.name, model.revision)
    if folder is None:
        return Checkpoint()
    check_settings(model.name, folder)
    return read_checkpoint(model.name, folder, complete=complete)


def _check_hub_adapter(model: ModelName) -> None:
    """Say of a hub model without config.json that it is a LoRA adapter, if it is one."""
    if model._is_local:
        return
    try:
        file = cached_file(
            model.name, "adapter_config.json", revision=model.revision, token=model.token
        )
    except OSError:
        return
    if file is not None:
        check_settings(model.name, Path(file).parent)


def _quantization(config: Any, *, dequantize: bool) -> str | None:
    """How a checkpoint is quantised; where asked for, set to be undone in loading."""
    for settings in (config, config.get_text_config(decoder=True)):
        found = getattr(settings, "quantization_config", None)
        if found is None:
            continue
        if found == {}:  # says nothing, and transformers refuses it
            del settings.quantization_config
            continue
        if not isinstance(found, dict):
            found = found.to_dict()
        in_few_bits = found.get("load_in_8bit") or found.get("load_in_4bit")
        method = "bitsandbytes" if in_few_bits else found.get("quant_method", "unknown")
        if dequantize and method in _DEQUANTIZED:
            settings.quantization_config = {**found, "dequantize": True}
        return str(method)
    return None


def _is_known(method: str | None) -> bool:
    """Whether transformers reads such a quantisation, and does not pass over its settings."""
    return method in AUTO_QUANTIZATION_CONFIG_MAPPING or method == "bitsandbytes"


def _computes_quantised(place: torch.device | str) -> bool:
    """Whether weights may stay as they are quantised: never on a CPU or MPS."""
    kind = place.type if isinstance(place, torch.device) else "cuda"
    return kind not in ("cpu", "mps") and torch.cuda.is_available()


def _check_size(
    model: ModelName, auto: Any, config: Any, checkpoint: Checkpoint, *, quantised: bool
) -> None:
    """Raise ModelError where config.json asks for far more weights than the files can hold."""
    if not checkpoint.files:
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            empty = auto.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception:
        return  # what is wrong shows in loading, where transformers prepares more for "meta"
    held = checkpoint.bytes
    elements = sum(parameter.numel() for parameter in empty.parameters())
    buffers = sum(buffer.nbytes for buffer in empty.buffers())
    most = held * (_MOST_ELEMENTS_PER_BYTE if quantised else 1)
    if elements > most or buffers > 2 * held + _SMALL_BUFFERS:
        raise ModelError(
            f"Cannot load the model {model.name!r}: its config.json describes {elements:,} "
            f"weights, and the files of weights have {held:,} bytes. Restore the model's own "
            "config.json, or copy the files again."
        )


def _load(
    model: ModelName, auto: Any, checkpoint: Checkpoint, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    mapping = {f"^{re.escape(checkpoint.wrapper)}": ""} if checkpoint.wrapper else None
    with _load_report() as report:
        try:
            return auto.from_pretrained(
                model.name, output_loading_info=True, key_mapping=mapping, **options
            )
        except RuntimeError as error:
            if not report:
                raise
            raise ModelError(
                f"Cannot load the model {model.name!r}: its weights do not fit its config.json: "
                f"{_shown(report[-1])}. Restore the model's own config.json, or copy the files "
                "again."
            ) from error


@contextmanager
def _load_report() -> Iterator[list[str]]:
    """Inside, transformers' reports of what it loaded are kept instead of printed."""
    logger = logging.getLogger("transformers.modeling_utils")
    reports: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            reports.append(record.getMessage())
        return not is_report and record.levelno >= level

    level = logger.getEffectiveLevel()
    own = logger.level
    logger.setLevel(min(level, logging.WARNING))
    logger.addFilter(keep)
    try:
        yield reports
    finally:
        logger.removeFilter(keep)
        logger.setLevel(own)


def _shown(report: str) -> str:
    """The rows of a load report that are no mere extras, in one line."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line).split("|") for line in report.splitlines()]
    found = []
    for key, status, *details in (row for row in rows if len(row) > 1):
        if status.strip() in ("MISMATCH", "CONVERSION", "MISSING"):
            detail = " ".join(details).strip().removeprefix("Reinit due to size mismatch - ")
            found.append(" ".join(f"{key.strip()} {status.strip()} {detail}".split()))
    return shortened(found, 3)


def _problem(loaded: PreTrainedModel, info: dict[str, Any], *, quantised: bool) -> str | None:
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


def _says(model: ModelName, problem: str, checkpoint: Checkpoint, method: str | None) -> str:
    wrappers = {found for name in checkpoint.names if (found := wrapper_in(name))}
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
    return f"Cannot load the model {model.name!r}: {problem}. {remedy}"


@contextmanager
def _explained(what: str, model: ModelName) -> Iterator[None]:
    """Turn whatever a library raises for a model into a ModelError of one line."""
    try:
        yield
    except (ModelError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of libraries in Rust are no Exceptions
        at = f" at revision {model.revision!r}" if model.revision else ""
        reason, remedy = _reason(error, model)
        raise ModelError(f"Cannot load the {what} {model.name!r}{at}: {reason} {remedy}") from error


def _reason(error: BaseException, model: ModelName) -> tuple[str, str]:
    said, line = str(error), first_line(error)
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if out_of_memory or re.search(r"allocate memory|out of memory|not enough memory", said):
        return (
            "there is too little memory for it.",
            "Use a smaller --model_dtype (bfloat16), another --device or --device_map auto, or a "
            "smaller model.",
        )
    if "trust_remote_code" in said and not model.trust_remote_code:
        return (
            "it comes with code of its own, which is not run unless you allow it.",
            "If you trust where it is from, add --trust_remote_code.",
        )
    if model._is_local and "instantiate the backend tokenizer" in said and _has_no_tokenizer(model):
        return (
            "it has no tokenizer (tokenizer.json).",
            f"Save the one that it was trained with: `tokenizer.save_pretrained({model.name!r})`.",
        )
    if "does not recognize this architecture" in said:
        return line, "A newer transformers may know it: `pip install --upgrade transformers`."
    if not isinstance(error, ValueError | OSError | ImportError):
        line = f"{type(error).__name__}: {line}"
    line = line if line.endswith((".", "!", "?")) else f"{line}."
    if isinstance(error, ImportError):
        missing = getattr(error, "name", None)
        named = missing and "install" not in said
        return line, f"Install it: `pip install {missing}`." if named else ""
    if model._is_local:
        return line, (
            "The folder must hold config.json, the weights and the tokenizer's files of one model, "
            "undamaged: copy or download them again."
        )
    return line, (
        "Check the spelling; a folder must exist and hold config.json, weights and tokenizer "
        "files; a hub model needs a connection and, where it is gated or private, a token."
    )


def _has_no_tokenizer(model: ModelName) -> bool:
    endings = (".model", ".tiktoken", "tokenizer.json", "tekken.json", "vocab.json", "vocab.txt")
    return not any(file.name.endswith(endings) for file in Path(model.name).iterdir())
