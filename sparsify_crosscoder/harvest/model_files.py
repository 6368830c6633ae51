"""What lies in a model's folder, looked at cheaply before anything is loaded from it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, TypedDict
from zipfile import is_zipfile

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from ..records import check

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names under which transformers looks for weights, in its order; each may have an index."""

_POINTER = b"version https://git-lfs"
_SMALL_FILES = {".json", ".jinja", ".txt", ".model"}
_LARGEST_SETTINGS = 64 * 2**20
_ORDINARY_LAYERS = 1_000
_MOST_MODULES = 10_000
_LAYERS = {
    *("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
}
_EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}

WRAPPER = re.compile(
    r"(?:(?:_orig_mod|module|base_model\.model|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)
"""What torch.compile, DDP, FSDP and peft put before the names of weights."""


def wrapper_in(name: str) -> str:
    """What a wrapper of the whole model or of a part of it has put into a weight's name, if any."""
    found = WRAPPER.match(name) or re.search(r"(?<=\.)(_orig_mod|_\w+_wrapped_module)\.", name)
    return found.group() if found else ""


class ModelError(ValueError):
    """A model that cannot be loaded: what is wrong, in which file, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder, by what their files say of themselves."""

    files: list[Path] = field(default_factory=list)
    """Those that transformers would read; none where they are not on this computer yet."""

    names: list[str] = field(default_factory=list)
    """Names of the tensors in them."""

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def prefix(self) -> str:
        """What all names begin with, in whole parts with their dots."""
        parts = sorted(name.split(".")[:-1] for name in self.names)
        if not parts:
            return ""
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(parts[0], parts[-1], strict=False))
        return "".join(f"{part}." for part, _ in pairs)

    @property
    def wrapper(self) -> str:
        """What a wrapper such as torch.compile or DDP has put before all names, or nothing."""
        found = WRAPPER.match(self.prefix)
        return found.group() if found else ""


GENERATION = "generation_config.json"
_Ids = int | list[int] | None
_Number = int | float | None


class _ModelConfig(TypedDict, total=False):
    """Settings of a model that transformers reads without a look at what they are."""

    quantization_config: dict[str, Any] | None


class _GenerationConfig(TypedDict, total=False):
    """Settings of generation that transformers reads without a look at what they are."""

    bos_token_id: _Ids
    eos_token_id: _Ids
    pad_token_id: _Ids
    decoder_start_token_id: _Ids
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    bad_words_ids: list[list[int]] | None
    forced_bos_token_id: _Ids
    forced_eos_token_id: _Ids
    max_length: int | None
    min_length: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    num_beams: int | None
    num_return_sequences: int | None
    no_repeat_ngram_size: int | None
    top_k: int | None
    temperature: _Number
    top_p: _Number
    min_p: _Number
    typical_p: _Number
    repetition_penalty: _Number
    length_penalty: _Number
    do_sample: bool | None
    use_cache: bool | None


def model_folder(
    name: str, revision: str | None = None, config: str = "config.json"
) -> Path | None:
    """The folder of a local model, or of what is here of one from the hub; None if nothing is.

    `config` is the file by which it is known.
    """
    if os.path.isdir(name):
        return Path(name)
    try:
        found = try_to_load_from_cache(name, config, revision=revision)
    except ValueError:  # no name that the hub could know
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_settings(name: str, folder: Path) -> None:
    """Raise ModelError for what is wrong with the small files of a model's folder."""
    for file in sorted(folder.iterdir()):
        if file.suffix in _SMALL_FILES and file.is_file():
            _check_content(name, file)
    shapes = {"config.json": _ModelConfig, GENERATION: _GenerationConfig}
    for file in ("config.json", "tokenizer_config.json", GENERATION):
        if (folder / file).is_file():
            content = read_object(name, folder / file)
            if file in shapes:
                try:
                    check(content, shapes[file])
                except ValueError as error:
                    raise _damaged(name, folder / file, str(error)) from error
    if (folder / "tokenizer.json").is_file():
        with (folder / "tokenizer.json").open("rb") as stream:
            if not stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                raise _damaged(name, folder / "tokenizer.json", "it is no JSON object")


def read_checkpoint(name: str, folder: Path, *, complete: bool) -> Checkpoint:
    """The weights of a folder; raises ModelError where they are damaged or some are absent.

    Unless it is `complete`, as the hub's cache before a download, absent files are let pass.
    """
    config = read_object(name, folder / "config.json") if (folder / "config.json").exists() else {}
    explicit = config.get("transformers_weights")
    for weights in (explicit,) if isinstance(explicit, str) else WEIGHTS:
        if (folder / weights).is_file() and not weights.endswith(".index.json"):
            file = folder / weights
            checkpoint = Checkpoint([file], tensor_names(name, file))
            break
        index = folder / f"{weights.removesuffix('.index.json')}.index.json"
        if index.is_file():
            checkpoint = _read_index(name, index, complete)
            break
    else:
        if not complete:
            return Checkpoint()
        others = [f.name for f in folder.iterdir() if f.suffix in (".gguf", ".pth", ".pt", ".h5")]
        there = f", only {', '.join(sorted(others)[:3])}, which is not read here" if others else ""
        raise ModelError(
            f"Cannot load the model {name!r}: it has no weights ({' or '.join(WEIGHTS)}){there}. "
            "Name a folder that `save_pretrained` wrote, or download the model again."
        )
    _check_layers(name, folder, config, checkpoint)
    if any("lora_" in tensor or ".base_layer." in tensor for tensor in checkpoint.names):
        raise ModelError(
            f"Cannot load the model {name!r}: its weights hold LoRA adapters that are not merged. "
            "Merge them with peft: `model.merge_and_unload().save_pretrained(FOLDER)`."
        )
    return checkpoint


def read_object(name: str, file: Path) -> dict[str, Any]:
    """The JSON object in one of a model's files; raises ModelError if there is none."""
    _check_content(name, file)
    if file.stat().st_size > _LARGEST_SETTINGS:
        raise _damaged(name, file, f"it has {file.stat().st_size:,} bytes")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise _damaged(name, file, "it is nested too deeply") from error
    except (ValueError, OSError) as error:
        raise _damaged(name, file, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(name, file, f"it holds a {type(content).__name__}, not an object")
    return content


def _damaged(name: str, file: Path, reason: str) -> ModelError:
    return ModelError(
        f"Cannot load the model {name!r}: '{file}' is damaged ({reason}). Copy or download the "
        "file again."
    )


def _check_content(name: str, file: Path) -> None:
    """Raise ModelError for an empty file and for git-lfs's stand-in for one."""
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if start == _POINTER:
        raise ModelError(
            f"Cannot load the model {name!r}: '{file}' is a git-lfs pointer, not the file itself. "
            f"Fetch it with `git lfs pull` in '{file.parent}', or download the model again."
        )
    if not start and file.suffix != ".txt":
        raise _damaged(name, file, "it is empty")


def _read_index(name: str, index: Path, complete: bool) -> Checkpoint:
    content = read_object(name, index)
    places = content.get("weight_map")
    if not (isinstance(places, dict) and places):
        raise _damaged(name, index, 'it has no "weight_map" of files')
    if not all(isinstance(file, str) for file in places.values()):
        raise _damaged(name, index, 'its "weight_map" names something else than files')
    names: list[str] = []
    files = []
    for shard in sorted(set(places.values())):
        file = index.parent / shard
        if Path(shard).name != shard:
            raise _damaged(name, index, f"it names '{shard}', outside its own folder")
        if not file.is_file():
            if complete:
                raise ModelError(
                    f"Cannot load the model {name!r}: '{file}', which '{index.name}' names, is "
                    "absent. Download or copy the model again, with all of its files."
                )
            return Checkpoint()
        held = tensor_names(name, file)
        absent = sorted({t for t, place in places.items() if place == shard} - set(held))
        if absent:
            raise _damaged(
                name, index, f"'{shard}' does not hold {shortened(absent)}, which it names there"
            )
        files.append(file)
        names += held
    if not isinstance(content.get("metadata"), dict):  # transformers cannot do without
        raise _damaged(name, index, 'it has no "metadata", which may be `{}`')
    if len(set(names)) != len(names):
        twice = sorted({tensor for tensor in names if names.count(tensor) > 1})
        raise _damaged(name, index, f"several of its files hold {shortened(twice)}")
    return Checkpoint(files, names)


def tensor_names(name: str, file: Path) -> list[str]:
    """Names of the tensors in a file of weights, which is not read beyond its header."""
    _check_content(name, file)
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return list(tensors.keys())
        content = torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file))
    except Exception as error:
        reason = first_line(error)
        if file.suffix != ".safetensors" and "weights" in reason.lower():
            raise ModelError(
                f"Cannot load the model {name!r}: '{file}' holds pickled objects besides weights, "
                "which can run any code and are not read. Get the model as safetensors, or save it "
                "again with save_pretrained."
            ) from error
        raise _damaged(name, file, reason) from error
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise ModelError(
            f"Cannot load the model {name!r}: '{file}' is no dictionary of weights but holds other "
            "things too, as a trainer's checkpoint does. Save the model with save_pretrained."
        )
    return [str(tensor) for tensor in content]


def _check_layers(name: str, folder: Path, config: Any, checkpoint: Checkpoint) -> None:
    """Raise ModelError for numbers of layers that such weights cannot have: they eat memory."""
    most = dict.fromkeys(_LAYERS, max(len(checkpoint.names), _ORDINARY_LAYERS))
    most |= dict.fromkeys(_EXPERTS, _MOST_MODULES)
    waiting = [config]
    while waiting:
        settings = waiting.pop()
        for key, value in settings.items():
            if isinstance(value, dict):
                waiting.append(value)
            elif key in most and isinstance(value, int | float) and value > most[key]:
                raise ModelError(
                    f"Cannot load the model {name!r}: '{folder / 'config.json'}' says {key} "
                    f"{value:,}, but the weights are {len(checkpoint.names):,} tensors. Restore "
                    "the model's own config.json."
                )


def shortened(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an exception says, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    if isinstance(error, KeyError):
        line = f"it has no {line}"
    return line if len(line) <= most else f"{line[: most - 3]}..."
