"""Which base and which PEFT adapter a model's name stands for.

A name is a model, an adapter (a folder or hub id with an adapter_config.json, which names its base)
or `BASE+ADAPTER`. The revision of an adapter is `BASE+ADAPTER` as well, with nothing for what is a
folder; without a plus it is that of whichever of the two is on the hub, the adapter first.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file

from .model_files import ModelError, model_folder, read_object
from .model_name import ModelName

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Parts(NamedTuple):
    """The model whose weights are loaded, and the adapter on it if there is one."""

    base: ModelName
    adapter: ModelName | None = None


def parts_of(model: ModelName, *, fetch: bool = False) -> Parts:
    """The base and the adapter that a name stands for.

    Of a hub's model that is not here yet, the adapter's config is fetched if `fetch` is set;
    without, it counts as a model. Raises ModelError for an adapter that names no base, or that is
    on another adapter.
    """
    base_name, adapter_name = _split(model.name)
    base_revision, adapter_revision = _revisions(adapter_name, model.revision)
    adapter = replace(model, name=adapter_name, revision=adapter_revision)
    file = _config_of(adapter, fetch)
    if base_name is None:
        if file is None:
            return Parts(model)
        settings = read_object(model.name, file)
        base_name = settings.get("base_model_name_or_path")
        base_revision = base_revision or settings.get("revision")
        if not base_name or not isinstance(base_name, str):
            raise ModelError(
                f"Cannot load the model {model.name!r}: it is an adapter, and its {ADAPTER_CONFIG} "
                f"names no base. Name both: BASE+{model.name}."
            )
    elif file is None and fetch:
        raise ModelError(
            f"Cannot load the model {model.name!r}: {adapter_name!r} is no adapter (it has no "
            f"{ADAPTER_CONFIG}). In BASE+ADAPTER the adapter is a folder that peft saved, or the "
            "hub's name of one."
        )
    base = replace(model, name=base_name, revision=base_revision)
    if _config_of(base, fetch) is not None:
        raise ModelError(
            f"Cannot load the model {model.name!r}: its base {base_name!r} is itself an adapter. "
            "Merge that one into its own base with peft "
            "(`PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(FOLDER)`"
            f"), and name FOLDER+{adapter_name}."
        )
    return Parts(base, adapter)


def said(parts: Parts, name: str) -> str:
    """What a run says where it begins of a model that is an adapter."""
    assert parts.adapter is not None
    adapter = "an adapter" if parts.adapter.name == name else f"the adapter {parts.adapter.name}"
    return f"{name} is {adapter} on {parts.base.name}; its base is loaded once."


def is_local(name: str) -> bool:
    """Whether a model is folders only, the base of an adapter included."""
    parts = parts_of(ModelName(name))
    return all(part.is_local for part in parts if part is not None)


def is_on_hub(name: str) -> bool:
    """Whether no part of a model is a folder."""
    return not any(part is not None and part.is_local for part in parts_of(ModelName(name)))


def adapter_folder(adapter: ModelName) -> Path | None:
    """The folder of an adapter, or of what is here of one from the hub; None if nothing is."""
    return model_folder(adapter.name, adapter.revision, ADAPTER_CONFIG)


def adapter_file(adapter: ModelName, name: str) -> Path | None:
    """A file of an adapter, fetched from the hub if it is there; None if there is none."""
    if adapter.is_local:
        file = Path(adapter.name) / name
        return file if file.is_file() else None
    try:
        found = cached_file(adapter.name, name, revision=adapter.revision, token=adapter.token)
    except OSError:
        return None
    return None if found is None else Path(found)


def joined_revision(base: str | None, adapter: str | None) -> str | None:
    """The revision at which the commits of an adapter and its base are found; None for folders."""
    return None if base is None and adapter is None else f"{base or ''}+{adapter or ''}"


def _split(name: str) -> tuple[str | None, str]:
    """The base and adapter in `BASE+ADAPTER`; no base where a name is a folder or has no plus."""
    if "+" not in name or os.path.isdir(name):
        return None, name
    cuts = [i for i, letter in enumerate(name) if letter == "+"]
    halves = [(name[:cut], name[cut + 1 :]) for cut in cuts if name[:cut] and name[cut + 1 :]]
    # A path may have a plus itself: what lies on this disk tells.
    return max(halves, key=lambda half: sum(map(os.path.isdir, half)), default=(None, name))


def _revisions(adapter: str, revision: str | None) -> tuple[str | None, str | None]:
    if revision is None:
        return None, None
    if "+" in revision:
        of_base, _, of_adapter = revision.partition("+")
        return of_base or None, of_adapter or None
    return (revision, None) if os.path.isdir(adapter) else (None, revision)


def _config_of(model: ModelName, fetch: bool) -> Path | None:
    """The adapter_config.json of a name, None where it is none of an adapter."""
    if model.is_local:
        file = Path(model.name) / ADAPTER_CONFIG
        return file if file.is_file() else None
    try:
        found = try_to_load_from_cache(model.name, ADAPTER_CONFIG, revision=model.revision)
    except ValueError:  # no name that the hub could know
        return None
    if isinstance(found, str):
        return Path(found)
    if not fetch or found is not None or model_folder(model.name, model.revision) is not None:
        return None
    return adapter_file(model, ADAPTER_CONFIG)
