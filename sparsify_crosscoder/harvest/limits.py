"""What a model can read: positions that it was made for, tokens that it has vectors for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from .source import Source


def context_length(model: Any) -> int | None:
    """How many tokens a model was made to read at once; None where it states no limit."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "max_seq_len")  # the second is MPT's
    limit = next((n for name in names if isinstance(n := getattr(config, name, None), int)), 0)
    if limit < 1 or getattr(config, "alibi", False) is True:
        return None
    limit = _stretched(limit, config)
    for name, module in model.named_modules():
        learned = isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
        if learned and module.padding_idx is not None:  # positions are counted from behind it
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


def _stretched(limit: int, config: Any) -> int:
    """The limit of rotary positions that are scaled: these kinds state the one before scaling."""
    rope = getattr(config, "rope_parameters", None) or {}
    factor = rope.get("factor")
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn") or not factor:
        return limit
    return max(limit, int(factor * (rope.get("original_max_position_embeddings") or limit)))


def embedding_rows(model: Any) -> int:
    """How many tokens a model has vectors for."""
    embedding = model.get_input_embeddings()
    return getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0]


def check_tokens(name: str, model: Any, tokenizer: Any, texts: Iterable[Sequence[int]]) -> None:
    """Raise ValueError where token ids are beyond a model's embedding."""
    largest = max((max(ids, default=-1) for ids in texts), default=-1)
    rows = embedding_rows(model)
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ValueError(
            f"The text has the token {token!r}, which the tokenizer of '{name}' gives the id "
            f"{largest}, but the model has vectors for {rows} tokens only (ids 0 to {rows - 1}). "
            "Take the token out of the text, or resize the model's embedding "
            "(model.resize_token_embeddings(len(tokenizer))) and save it."
        )


def check_texts(model: Any, tokenizer: Any, texts: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where a model cannot read some of the texts or prompts, given as ids."""
    check_tokens(model.name_or_path, model, tokenizer, texts)
    limit, longest = context_length(model), max(map(len, texts), default=0)
    if limit is not None and longest > limit:
        raise ValueError(
            f"'{model.name_or_path}' reads at most {limit} tokens at once, and a text or prompt "
            f"has {longest}. Shorten it."
        )


def check_windows(sources: Sequence[Source], windows: Dataset) -> None:
    """Raise ValueError, before any model runs, where one cannot read the windows.

    Windows must not be longer than a model's positions, and their tokens must be among those that
    its embedding has a vector for.
    """
    longest, largest = [0] * len(sources), [-1] * len(sources)
    columns = [f"input_ids_{s}" for s in range(len(sources))]
    for batch in windows.select_columns(columns).with_format("arrow").iter(batch_size=4096):
        table: Any = batch
        for s, column in enumerate(columns):
            for chunk in table[column].chunks:
                lengths = np.diff(chunk.offsets.to_numpy())
                ids = chunk.flatten().to_numpy()
                longest[s] = max(longest[s], int(lengths.max(initial=0)))
                largest[s] = max(largest[s], int(ids.max(initial=-1)))
    for s, source in enumerate(sources):
        check_window_limits(source, longest[s], largest[s])


def check_window_limits(source: Source, longest: int, largest: int) -> None:
    """Raise ValueError where a source cannot read windows with such a length and token id."""
    check_tokens(source.name, source.model, source.tokenizer, [[largest]])
    limit = context_length(source.model)
    if limit is not None and longest > limit:
        raise ValueError(
            f"'{source.name}' reads at most {limit} tokens at once, and windows of the text have "
            f"up to {longest}. Lower --ctx_len to {limit}."
        )


def warn_of_tokens_without_vectors(name: str, model: Any, tokenizer: Any) -> None:
    """Say once which tokens a tokenizer can write that its model cannot read."""
    rows = embedding_rows(model)
    beyond = sorted(t for t, id in tokenizer.get_vocab().items() if id >= rows)
    if beyond:
        logging.getLogger(__name__).warning(
            "The tokenizer of '%s' has %d tokens that its model has no vector for, such as %r; "
            "texts with one of them are refused.",
            name,
            len(beyond),
            beyond[0],
        )
