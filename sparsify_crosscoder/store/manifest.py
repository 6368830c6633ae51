"""What a store says of itself: manifest.json, read and compared before anything is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from datasets import Dataset
from transformers import PreTrainedModel

from ..harvest.families import describe_family
from ..harvest.model_identity import checkpoint_digest
from ..harvest.source import Source
from ..harvest.weight_digests import sampled_digest, weights_digest
from ..hashing import hash_text
from ..records import check, read_json, reading
from ..text.window_numbers import window_numbers
from .part_windows import hash_notes, hash_windows
from .shard_notes import ShardNote

FORMAT = "sparsify-crosscoder activations"
VERSION = 2
MANIFEST = "manifest.json"
LOCK = ".lock"
_RESTORE = "Restore it from a copy, or delete the folder and harvest again."


class _Windows(TypedDict):
    count: int
    pairs: int
    sha256: str


class _Part(TypedDict):
    complete: bool
    windows: _Windows
    settings: dict[str, Any]
    origin: dict[str, Any] | None
    first_text: int
    first_shard: int
    shards: list[ShardNote]


class _Source(TypedDict):
    name: str
    hookpoint: str
    width: int


class _Manifest(TypedDict):
    sources: list[_Source]
    parts: list[_Part]


def new_manifest(sources: Sequence[Source]) -> dict[str, Any]:
    """The manifest of an empty store."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "sources": [describe_source(source) for source in sources],
        "parts": [],
    }


def new_part(
    windows: Dataset,
    settings: dict[str, Any],
    origin: dict[str, Any] | None,
    before: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """A part without shards, behind the complete parts `before`."""
    return {
        "complete": False,
        "windows": {
            "count": len(windows),
            "pairs": int(window_numbers(windows, "num_pairs").sum()),
            "sha256": hash_windows(windows),
            "notes": hash_notes(windows),
        },
        "settings": settings,
        "origin": origin,
        "first_text": 0,
        "first_shard": sum(len(part["shards"]) for part in before),
        "shards": [],
    }


def column_names(part: dict[str, Any]) -> tuple[str, ...]:
    """The columns that a part of a store has beside its activations."""
    return tuple(part["settings"].get("columns", ()))


def is_store(path: str | Path) -> bool:
    """Whether a folder holds a store, of whatever version and in whatever state."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the store at `path`, None if there is none.

    Raises ValueError for one that is damaged, of something else, or of another version.
    """
    file = path / MANIFEST
    if not file.exists():
        return None
    manifest = read_json(file, Any, _RESTORE)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"'{file}' does not describe activations of sparsify-crosscoder.")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"'{path}' has version {manifest.get('version')} of the format, this program reads "
            f"version {VERSION}; harvest again, or use the program that wrote it."
        )
    with reading(file, _RESTORE):
        check(manifest, _Manifest)
    return manifest


def same_sources(manifest: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two stores' sources agree in all but where their models were loaded from."""
    ones, others = manifest["sources"], other["sources"]
    return len(ones) == len(others) and all(map(_same_source, ones, others))


def _same_source(one: dict[str, Any], other: dict[str, Any]) -> bool:
    compared = {"hookpoint", "width", "model_dtype", "tokenizer"}
    if any(one.get(name) != other.get(name) for name in compared):
        return False
    # Stores of earlier versions have the sampled digest where others have that of all values.
    name = "weights" if ("sampled" in one) == ("sampled" in other) else "sampled"
    return one.get(name, one["weights"]) == other.get(name, other["weights"])


def is_model(source: dict[str, Any], model: PreTrainedModel) -> bool:
    """Whether a loaded model has the weights of a store's source, in its dtype."""
    digest = weights_digest if "sampled" in source else sampled_digest
    return digest(model) == source["weights"]


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what a tokenizer does to a text."""
    # Truncation and padding, which come first, change with how a tokenizer was last called.
    state = tokenizer.backend_tokenizer.to_str()
    return hash_text(state[state.index('"added_tokens":') :])


def describe_source(source: Source) -> dict[str, Any]:
    """What a store says of a source."""
    return {
        "name": source.name,
        "revision": source.revision,
        "hookpoint": source.hookpoint,
        "width": source.width,
        "model_dtype": str(source.model.dtype).removeprefix("torch."),
        "weights": weights_digest(source.model),
        "sampled": sampled_digest(source.model),
        "checkpoint": checkpoint_digest(source.name, source.revision),
        "tokenizer": tokenizer_digest(source.tokenizer),
        **describe_family(source),
    }
