"""Loading language models as their checkpoints are, or saying in one line why they cannot be."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.hub import CHAT_TEMPLATE_FILE

from .adapter_name import Parts, adapter_file, parts_of
from .load_errors import explained
from .misfits import misfit, what_misfits
from .model_files import (
    Checkpoint,
    ModelError,
    check_settings,
    model_folder,
    read_checkpoint,
    shortened,
)
from .model_name import ModelName

# Of these transformers can undo the quantisation, on any device.
_DEQUANTIZED = {"mxfp4", "fp8", "mxfp8"}
_MOST_ELEMENTS_PER_BYTE = 8
_SMALL_BUFFERS = 2**28


def load_config(model: ModelName) -> Any:
    """A model's config, or that of an adapter's base, once the files have been looked at.

    Raises ModelError, a ValueError, for whatever is wrong with it.
    """
    base, adapter = _parts(model)
    if adapter is not None:
        _check_adapter(model, adapter)
        with _base_of(adapter, base):
            return load_config(base)
    with explained("model", model):
        _check_files(model, complete=False)
        return AutoConfig.from_pretrained(model.name, **model.where)


def load_tokenizer(model: ModelName) -> Any:
    """A model's tokenizer: an adapter's own if it has one, or else its base's.

    An adapter's chat template counts without a tokenizer too, and the base's where it has none.
    Raises ModelError, a ValueError, for whatever is wrong with it.
    """
    base, adapter = _parts(model)
    if adapter is None:
        with explained("tokenizer of", model):
            folder = model_folder(model.name, model.revision)
            if folder is not None:
                check_settings(model.name, folder)
            return AutoTokenizer.from_pretrained(model.name, **model.where)
    with _base_of(adapter, base):
        tokenizer = load_tokenizer(base)
    with explained("tokenizer of", adapter):
        if adapter_file(adapter, "tokenizer_config.json") is not None:
            own = AutoTokenizer.from_pretrained(adapter.name, **adapter.where)
            own.chat_template = own.chat_template or tokenizer.chat_template
        elif (template := adapter_file(adapter, CHAT_TEMPLATE_FILE)) is not None:
            own = copy.deepcopy(tokenizer)
            own.chat_template = template.read_text(encoding="utf-8")
        else:
            return tokenizer
    _say_what_differs(model.name, own, tokenizer)
    return own


def load_pretrained(
    model: ModelName,
    auto: Any = AutoModel,
    *,
    place: torch.device | str,
    dtype: torch.dtype,
    load_in_8bit: bool = False,
    base: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """A model with the weights of its checkpoint, in eval mode, without gradients.

    `place` is a device or a `device_map`. What is quantised on disk is loaded as transformers
    loads it; MXFP4 and FP8 are turned into `dtype` where no GPU computes in them. A prefix that a
    wrapper has put before the names of all weights is taken off.

    An adapter is put on its base (see `with_adapter`): on `base` if that is loaded already.

    Raises ModelError, a ValueError, for whatever is wrong with the model: damaged or absent files,
    weights that are missing, left over or of another shape than config.json says, a quantisation
    that needs a package or device which is not there, code of its own without
    `trust_remote_code`, or too little memory.
    """
    of, adapter = _parts(model)
    if adapter is not None:
        from .adapters import with_adapter

        _check_adapter(model, adapter)
        if base is None:
            with _base_of(adapter, of):
                base = load_pretrained(
                    of, auto, place=place, dtype=dtype, load_in_8bit=load_in_8bit
                )
        with explained("model", model):
            return with_adapter(base, model, adapter)
    with explained("model", model):
        config = load_config(model)
        checkpoint = _check_files(model, complete=model.is_local)
        options: dict[str, Any] = {**model.where, "config": config, "dtype": dtype}
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
        problem = misfit(loaded, info, quantised=_is_known(method))
        if problem and not checkpoint.files:  # now the files are here
            checkpoint = _check_files(model, complete=False)
            if checkpoint.wrapper:
                loaded, info = _load(model, auto, checkpoint, options)
                problem = misfit(loaded, info, quantised=_is_known(method))
        if problem:
            raise ModelError(what_misfits(model.name, problem, checkpoint, method))
    return loaded.eval().requires_grad_(False)


def check_weights(model: ModelName) -> None:
    """Raise ModelError where the files of a local model's weights are damaged or absent."""
    base, adapter = _parts(model)
    if adapter is not None:
        with _base_of(adapter, base):
            return check_weights(base)
    with explained("model", model):
        _check_files(model, complete=model.is_local)


def _parts(model: ModelName) -> Parts:
    with explained("model", model):
        return parts_of(model, fetch=True)


def _check_adapter(model: ModelName, adapter: ModelName) -> None:
    from .adapters import check_adapter

    with explained("model", model):
        check_adapter(model, adapter)


@contextmanager
def _base_of(adapter: ModelName, base: ModelName) -> Iterator[None]:
    """Inside, what is wrong with a base says whose base it is."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"{error} {base.name!r} is the base of the adapter {adapter.name!r}; if you have it "
            f"elsewhere, name both: BASE+{adapter.name}."
        ) from error


def _say_what_differs(name: str, own: Any, base: Any) -> None:
    """Say once where an adapter's tokenizer is not that of its base."""
    what = [
        said
        for said, one, other in (
            ("tokens", own.get_vocab(), base.get_vocab()),
            ("chat template", own.chat_template, base.chat_template),
        )
        if one != other
    ]
    if what:
        logging.getLogger(__name__).warning(
            "The tokenizer of '%s' is its adapter's own and differs from its base's in its %s.",
            name,
            " and ".join(what),
        )


def _check_files(model: ModelName, *, complete: bool) -> Checkpoint:
    folder = model_folder(model.name, model.revision)
    if folder is None:
        return Checkpoint()
    check_settings(model.name, folder)
    return read_checkpoint(model.name, folder, complete=complete)


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
