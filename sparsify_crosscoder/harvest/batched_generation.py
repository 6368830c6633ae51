"""What it takes to have a model go on from prompts of unlike length, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig


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


def generation_config(most_new: int, ends: set[int], pad: int) -> GenerationConfig:
    """The likeliest of at most `most_new` tokens, whatever a checkpoint's own settings are; logits
    processors may choose another one."""
    # What is None here would come from the checkpoint's own generation settings.
    return GenerationConfig(
        max_new_tokens=most_new,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
    )


def until_end(tokens: list[int], ends: set[int]) -> tuple[list[int], bool]:
    """An answer's tokens before the one that ends it, and whether there is one."""
    stop = next((place for place, id in enumerate(tokens) if id in ends), None)
    return tokens[:stop], stop is not None
