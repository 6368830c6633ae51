"""Prompts of unlike length as one batch that a model goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each `[N, longest prompt]`, every prompt at the right."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens with which a model ends an answer."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    ends = set(ends) if isinstance(ends, list | tuple) else {ends}
    return {id for id in (*ends, tokenizer.eos_token_id) if id is not None}


def pad_token(tokenizer: Any, ends: set[int]) -> int:
    """A token to pad with; masked, so any will do."""
    return next((i for i in (tokenizer.pad_token_id, *sorted(ends)) if i is not None), 0)
