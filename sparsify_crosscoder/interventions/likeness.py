"""Whether two models change alike when each is pushed, measured on the words that both know.

P prompts, W words that are one token in both vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..activations.limits import check_texts
from .effects import log_probabilities
from .prompts import Prompt, encode_prompt
from .steering import Steering, steered

MOST_LIKELY = 2_000  # words of each prompt that are compared; of rarer ones only noise is seen


@dataclass(frozen=True)
class Changes:
    """What steering does to the words that may come next after each prompt."""

    change: Tensor
    """Change of log-probability, `[P, W]`."""

    probability: Tensor
    """Without steering, `[P, W]`."""


@dataclass(frozen=True)
class Likeness:
    """How like one change is to another, mean over the prompts."""

    correlation: float
    """Of the changes of log-probability over the words that are likeliest without steering."""

    size: float
    """Of the second change as a multiple of the first, by their spread over these words."""


def common_words(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """The tokens of both tokenizers for the words that are one token, after a space, in each.

    Two `[W]`, in the same order. Raises ValueError if there are none.
    """
    texts = first.batch_decode([[token] for token in range(len(first))])
    words = sorted({text.strip() for text in texts if text.strip().isalpha()})
    spaced = [f" {word}" for word in words]
    both = [t(spaced, add_special_tokens=False)["input_ids"] for t in (first, second)]
    pairs = [(a[0], b[0]) for a, b in zip(*both, strict=True) if len(a) == len(b) == 1]
    if not pairs:
        raise ValueError("No word is a single token in both vocabularies; effects do not compare.")
    tokens = torch.tensor(pairs)
    return tokens[:, 0], tokens[:, 1]


@torch.inference_mode()
def word_changes(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    steering: Sequence[Steering],
    dose: Sequence[float],
    tokens: Tensor,
    *,
    chat: bool | None = None,
) -> Changes:
    """What steering at `dose` [F] does to the tokens `[W]` as the next after each prompt."""
    change, probability = [], []
    encoded = [encode_prompt(tokenizer, prompt, chat) for prompt in prompts]
    check_texts(model, tokenizer, encoded)
    for prompt in encoded:
        ids = torch.tensor([prompt], device=model.device)
        mask = torch.ones(ids.shape, dtype=torch.long)
        plain = log_probabilities(model, ids)[0, 0].cpu()[tokens]
        with steered(model, steering, torch.tensor([list(dose)]), mask):
            pushed = log_probabilities(model, ids)[0, 0].cpu()[tokens]
            change.append(pushed - plain)
        probability.append(plain.exp())
    return Changes(torch.stack(change), torch.stack(probability))


def likeness(first: Changes, second: Changes) -> Likeness:
    """Compare two changes over the same words after the same prompts."""
    correlations, sizes = [], []
    for p in range(len(first.change)):
        likely = first.probability[p] + second.probability[p]
        kept = likely.topk(min(MOST_LIKELY, len(likely))).indices
        a, b = (changes.change[p, kept].double() for changes in (first, second))
        a, b = a - a.mean(), b - b.mean()
        # A push of strength 0 changes nothing, and is like nothing.
        correlations.append((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))
        sizes.append(b.norm() / a.norm().clamp_min(1e-30))
    return Likeness(float(torch.stack(correlations).mean()), float(torch.stack(sizes).mean()))
