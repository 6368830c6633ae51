"""What a run was trained on: its models, by their checkpoints, and its texts, by their tokens.

A run records this when it begins, under `trained_on` in its config.json, and everything that reads
its models or texts again compares with it: a changed model or dataset is refused, never read for
the one that the run has seen.

    sources   per source: name, revision (the hub's commit), hookpoint, width, and what tells the
              model apart: the digest of its checkpoint, or else that of its weights
    texts     sha256 of the tokens and pairs of the windows, and the number of pairs
    store     of a run with a store: sha256 of the windows of each of its parts, and the digest of
              each model's weights that the store has
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..harvest.families import describe_family
from ..harvest.model_identity import checkpoint_digest
from ..harvest.source import Source
from ..harvest.sources import load_fast_tokenizer
from ..harvest.weight_digests import weights_digest
from ..store.manifest import describe_source, tokenizer_digest
from ..store.part_windows import hash_pairs
from ..store.store import ActivationStore
from ..text.window_numbers import window_numbers
from .config import RunConfig

RECORDED = (
    *("name", "revision", "hookpoint", "width", "checkpoint", "weights", "model_dtype"),
    *("base", "adapter", "architecture", "vocabulary"),
)


def source_of_run(source: Source) -> dict[str, Any]:
    """What a run records of a source: of its weights a digest only where no file has them."""
    described: dict[str, Any] = {
        "name": source.name,
        "hookpoint": source.hookpoint,
        "width": source.width,
        **describe_family(source),
    }
    if source.revision is not None:
        described["revision"] = source.revision
    checkpoint = checkpoint_digest(source.name, source.revision)
    if checkpoint is not None:
        return described | {"checkpoint": checkpoint}
    dtype = str(source.model.dtype).removeprefix("torch.")
    return described | {"weights": weights_digest(source.model), "model_dtype": dtype}


def sources_of_store(store: ActivationStore, names: Sequence[str]) -> list[dict[str, Any]]:
    """What a run records of the sources of the store that it is trained from, under these names."""
    described = []
    for name, source in zip(names, store.manifest["sources"], strict=True):
        kept = {key: source[key] for key in RECORDED if source.get(key) is not None}
        if "checkpoint" in kept:
            # The same weights may be written in another way under this name.
            now = checkpoint_digest(name, source.get("revision"))
            kept["checkpoint"] = now or kept["checkpoint"]
            kept = {k: v for k, v in kept.items() if k not in ("weights", "model_dtype")}
        described.append(kept | {"name": name})
    return described


def record(
    sources: Sequence[dict[str, Any]], windows: Dataset, store: ActivationStore | None
) -> dict[str, Any]:
    """What a run that begins records."""
    pairs = int(window_numbers(windows, "num_pairs").sum())
    recorded: dict[str, Any] = {
        "sources": list(sources),
        "texts": {"sha256": hash_pairs(windows), "pairs": pairs},
    }
    if store is not None:
        recorded["store"] = _identity(store)
    return recorded


def _identity(store: ActivationStore) -> dict[str, Any]:
    return {
        "parts": [part["windows"]["sha256"] for part in store.manifest["parts"]],
        "models": [source["weights"] for source in store.manifest["sources"]],
        "hookpoints": [source["hookpoint"] for source in store.manifest["sources"]],
    }


def recorded_revisions(config: RunConfig) -> list[str | None] | None:
    """The commit of each model that a run was begun with; None without a record."""
    sources = (config.trained_on or {}).get("sources")
    return None if sources is None else [source.get("revision") for source in sources]


def check_models(config: RunConfig, sources: Sequence[Source]) -> None:
    """Raise ValueError if loaded models have other weights than those that a run was begun with."""
    for number, (source, before) in enumerate(
        zip(sources, (config.trained_on or {}).get("sources", ()), strict=False), 1
    ):
        if before.get("checkpoint") is not None:
            now = checkpoint_digest(source.name, source.revision)
            changed = now is not None and now != before["checkpoint"]
        elif before.get("weights") is not None:
            found = describe_source(source)
            changed = found["model_dtype"] == before.get("model_dtype") and before[
                "weights"
            ] not in (found["weights"], found["sampled"])
        else:
            continue
        if changed:
            raise ValueError(
                f"Model {number}, '{source.name}', has other weights or settings now than when the "
                "run was begun. Put that model back in its place, or train again under another "
                "--run_name."
            )


def check_texts(config: RunConfig, windows: Dataset) -> None:
    """Raise ValueError if windows are not those of the texts that a run was begun with."""
    before = (config.trained_on or {}).get("texts")
    if before is not None and before["sha256"] != hash_pairs(windows):
        raise ValueError(
            f"The texts of '{config.dataset}' are not those that the run was begun with "
            f"({before['pairs']:,} pairs then, {sum(windows['num_pairs'][:]):,} now). Restore the "
            "dataset and the tokenizers as they were, or train again under another --run_name."
        )


def check_store(config: RunConfig, store: ActivationStore, *, whole: bool = False) -> None:
    """Raise ValueError if a store is not the one that a run was begun with.

    It may have had texts appended to it since, unless it has to be the same as a `whole`.
    """
    before, now = (config.trained_on or {}).get("store"), _identity(store)
    if before is None:
        return
    parts = now["parts"] if whole else now["parts"][: len(before["parts"])]
    reason = "other texts" if parts != before["parts"] else None
    if now["models"] != before["models"] or now["hookpoints"] != before["hookpoints"]:
        reason = "activations of other models or hookpoints"
    if reason is not None:
        raise ValueError(
            f"The store '{store.path}' is not the one that the run was begun with: it holds "
            f"{reason}. Put that store back, or train again under another --run_name."
        )


def load_run_tokenizers(config: RunConfig, store: ActivationStore) -> list[Any]:
    """The tokenizers of a run with a store, which must be those of the harvest.

    Raises ValueError if one cannot be loaded, or is another now.
    """
    names = [config.model, *config.partners]
    tokenizers = []
    for name, source in zip(names, store.manifest["sources"], strict=True):
        tokenizer = load_fast_tokenizer(
            name,
            revision=source.get("revision"),
            token=config.hf_token,
            trust_remote_code=config.trust_remote_code,
        )
        if tokenizer_digest(tokenizer) != source.get("tokenizer", tokenizer_digest(tokenizer)):
            raise ValueError(
                f"The tokenizer of '{name}' is not the one that the store '{store.path}' was "
                "harvested with: it would show other text. Put that tokenizer back."
            )
        tokenizers.append(tokenizer)
    return tokenizers


def is_begun(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return any((folder / name).exists() for name in ("config.json", "checkpoints"))
