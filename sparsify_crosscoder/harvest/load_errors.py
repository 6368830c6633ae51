"""What a library raises for a model, in one line and with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .model_files import ModelError, first_line
from .model_name import ModelName


@contextmanager
def explained(what: str, model: ModelName) -> Iterator[None]:
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
    if model.is_local and "instantiate the backend tokenizer" in said and _has_no_tokenizer(model):
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
    if model.is_local:
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
