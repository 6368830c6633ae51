"""Whether two sources share a basis: one model and an adapter or fine-tune of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from ..hashing import hash_json
from .adapter_name import parts_of
from .model_name import ModelName
from .source import Source

_SHAPE = (
    *("model_type", "hidden_size", "num_hidden_layers", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)


class Kinship(NamedTuple):
    """Whether two sources share a basis."""

    same: bool
    why: str
    """In words, for people."""


def describe_family(source: Source) -> dict[str, Any]:
    """What a store or run records of a source so that its family is known without its model."""
    base, adapter = parts_of(ModelName(source.name, source.revision))
    described: dict[str, Any] = {
        "architecture": architecture_of(source.model),
        "vocabulary": vocabulary_digest(source.tokenizer),
    }
    if adapter is not None:
        described |= {"base": base.name, "adapter": adapter.name}
    return described


def same_family(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sources of a manifest or run share a basis; see `kinship`."""
    return kinship(one, other).same


def kinship(one: Mapping[str, Any], other: Mapping[str, Any]) -> Kinship:
    """Whether the models of two recorded sources share a basis, so that B - A has a meaning.

    They do if they are one model or adapters of one (by the digests of their checkpoints), or have
    the same architecture, sizes, number of layers and vocabulary: then one is taken for a fine-tune
    of the other. Where too little is recorded they do not. At which hookpoints they are read is not
    asked.
    """
    names = [str(source.get("name")) for source in (one, other)]
    bases = [_base_digest(source) for source in (one, other)]
    if bases[0] is not None and bases[0] == bases[1]:
        adapters = [
            name for name, source in zip(names, (one, other), strict=True) if source.get("adapter")
        ]
        if not adapters:
            return Kinship(True, f"{names[0]} and {names[1]} are the same model")
        verb = "is an adapter" if len(adapters) == 1 else "are adapters"
        base = next(source["base"] for source in (one, other) if source.get("adapter"))
        return Kinship(True, f"{' and '.join(adapters)} {verb} on {base}")
    for what in ("architecture", "vocabulary"):
        if one.get(what) is None or other.get(what) is None:
            return Kinship(False, f"the {what} of {names[0]} or {names[1]} is not recorded")
        if one[what] != other[what]:
            return Kinship(False, f"{names[0]} and {names[1]} differ in their {what}")
    if one.get("width") != other.get("width"):
        return Kinship(False, f"{names[0]} and {names[1]} differ in their width")
    return Kinship(
        True, f"{names[0]} and {names[1]} have the same architecture, sizes and vocabulary"
    )


def architecture_of(model: PreTrainedModel) -> dict[str, Any]:
    """The kind and the sizes of a model, those that a fine-tune of it has as well."""
    config = model.config.get_text_config(decoder=True)
    return {name: value for name in _SHAPE if (value := getattr(config, name, None)) is not None}


def vocabulary_digest(tokenizer: Any) -> str:
    """sha256 of a fast tokenizer's vocabulary and merges, without the tokens added to them."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return hash_json(state["model"], sort_keys=True)


def _base_digest(source: Mapping[str, Any]) -> str | None:
    digest = source.get("checkpoint")
    return None if digest is None else str(digest).partition("+")[0]
