"""Whether two models change alike when each is pushed, measured on the words that both know.

P prompts, W words that are one token in both vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..harvest.limits import check_texts
from .effects import log_probabilities
from .prompts import Prompt, encode_prompt
from .steering import Steering, steered

MOST_LIKELY = 2_000  # words of each prompt that are compared; of rarer ones only noise is seen
ROWS = 16  # of a batch


@dataclass(frozen=True)
class Changes:
    """What steering does to the words that may come next after each prompt."""

    change: Tensor
    """Change of log-probability, `[P, W]`."""

    probability: Tensor
    """Without steering, `[P, W]`."""


@dataclass(frozen=True)
class Pushes:
    """What each of F directions does, used one at a time at K strengths."""

    changes: list[list[Changes]]
    """`changes[f][k]`."""

    kl: Tensor
    """Of the next token from that of the unsteered model, in nats, `[F, K, P]`."""


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


@torch.inference_mode()
def pushes(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    steering: Sequence[Steering],
    strengths: Sequence[float],
    tokens: Tensor,
    *,
    chat: bool | None = None,
    description: str | None = None,
) -> Pushes:
    """As `word_changes` of each direction alone at each strength, several in one batch.

    Directions act on every token. A `description` stands before a bar of progress.
    """
    doses = torch.tensor(list(strengths), dtype=torch.float32)
    at_once = max(ROWS // len(doses), 1)
    change = torch.zeros(len(steering), len(doses), len(prompts), len(tokens))
    kl = torch.zeros(len(steering), len(doses), len(prompts))
    probability = []
    total = len(steering) * len(prompts)
    with tqdm(
        total=total, desc=description, unit="direction", disable=description is None
    ) as progress:
        for p, prompt in enumerate(prompts):
            ids = torch.tensor([encode_prompt(tokenizer, prompt, chat)], device=model.device)
            plain = log_probabilities(model, ids)[0, 0]
            probability.append(plain.cpu()[tokens].exp())
            for start in range(0, len(steering), at_once):
                some = steering[start : start + at_once]
                rows = torch.block_diag(*[doses[:, None]] * len(some))
                with steered(model, some, rows):
                    pushed = log_probabilities(model, ids.expand(len(rows), -1))[:, 0]
                divergence = (pushed.exp() * (pushed - plain)).sum(-1).cpu()
                moved = pushed.cpu()[:, tokens] - plain.cpu()[tokens]
                these = slice(start, start + len(some))
                kl[these, :, p] = divergence.view(len(some), -1)
                change[these, :, p] = moved.view(len(some), len(doses), -1)
                progress.update(len(some))
    before = torch.stack(probability)
    return Pushes([[Changes(one, before) for one in of] for of in change], kl)


def likeness(first: Changes, second: Changes) -> Likeness:
    """Compare two changes over the same words after the same prompts."""
    correlations, sizes = likeness_of_prompts(first, second)
    return Likeness(float(correlations.mean()), float(sizes.mean()))


def likeness_of_prompts(first: Changes, second: Changes) -> tuple[Tensor, Tensor]:
    """`correlation` and `size` of `Likeness` after each prompt, `[P]` each."""
    correlations, sizes = [], []
    for p in range(len(first.change)):
        likely = first.probability[p] + second.probability[p]
        kept = likely.topk(min(MOST_LIKELY, len(likely))).indices
        a, b = (changes.change[p, kept].double() for changes in (first, second))
        a, b = a - a.mean(), b - b.mean()
        # A push of strength 0 changes nothing, and is like nothing.
        correlations.append((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))
        sizes.append(b.norm() / a.norm().clamp_min(1e-30))
    return torch.stack(correlations), torch.stack(sizes)
