"""Whether the models that a command names are those that a store was harvested from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..harvest.adapter_name import is_on_hub
from ..harvest.model_identity import (
    checkpoint_digest,
    commit_of,
    is_here,
    revision_suffix,
    same_name,
)
from ..harvest.sources import load_base_model
from .manifest import is_model


def check_store_models(
    store: str | Path,
    sources: Sequence[dict[str, Any]],
    names: Sequence[str],
    revisions: Sequence[str | None],
    token: str | None = None,
) -> None:
    """Raise ValueError if these are not a store's models, in the order of its sources.

    `sources` are those of the store's manifest. A model is the store's where its name (a hub id or
    a path, however it is written) is the recorded one, at the recorded commit, unless its folder
    holds other weights now; nothing has to be there. Under another name it is the store's if its
    checkpoint has the recorded digest, or its weights have it once they are loaded.
    """
    if len(names) != len(sources):
        raise _refused(store, sources, f"{len(names)} models are named")
    for i, (source, name, revision) in enumerate(zip(sources, names, revisions, strict=True)):
        reason = _difference(source, name, revision, token)
        if reason is None:
            continue
        own = checkpoint_digest(name, revision)
        for other, known in enumerate(sources):
            if other != i and own is not None and own == known.get("checkpoint"):
                reason = f"it is the store's model {other + 1}"
        raise _refused(store, sources, f"'{name}' is not its model {i + 1}: {reason}")


def _difference(
    source: dict[str, Any], name: str, revision: str | None, token: str | None
) -> str | None:
    """Why a model is not, or cannot be shown to be, that of a store's source; None if it is."""
    recorded = source.get("revision")
    if None not in (revision, recorded) and recorded != revision:
        commit = commit_of(name, revision)
        if commit != recorded:
            return f"its revision {revision!r} is {commit or 'not here'}, the store's is {recorded}"
    named = same_name(name, source["name"])
    if named and recorded is not None and is_on_hub(name):
        return None  # a hub id at a commit is what it was
    if not is_here(name, revision):
        return None if named else "no such model is here"
    known = source.get("checkpoint")
    own = checkpoint_digest(name, revision)
    if own is not None and own == known:
        return None
    if named and known is None and revision is None:
        return None  # stores of earlier versions
    if _has_weights(source, name, revision, token):
        return None
    return "its weights are others"


def _has_weights(
    source: dict[str, Any], name: str, revision: str | None, token: str | None
) -> bool:
    """Whether a checkpoint that was written in another way has a source's weights."""
    dtype = getattr(torch, str(source.get("model_dtype")), None)
    if not isinstance(dtype, torch.dtype) or "weights" not in source:
        return False
    try:
        model = load_base_model(name, dtype=dtype, revision=revision, token=token)
    except (ValueError, OSError):
        return False
    return is_model(source, model)


def _refused(store: str | Path, sources: Sequence[dict[str, Any]], reason: str) -> ValueError:
    held = ", ".join(
        f"{source['name']}{revision_suffix(source)} at {source['hookpoint']}" for source in sources
    )
    return ValueError(
        f"The store '{store}' holds {held}; name the same models in this order ({reason})."
    )
