"""Answers that a language model samples to prompts: batched, and the same for the same seed.

Tokens are drawn from the model's own distribution at temperature 1, nothing cut off: what the model
says, and not what a generation config would have it prefer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from .batched_generation import (
    end_tokens,
    generation_config,
    left_padded,
    pad_token,
    until_end,
)
from .limits import check_tokens, context_length

ROWS, TOKENS = 64, 65_536
"""Most answers of a batch, and most tokens that it keeps in memory, prompts included."""


class Question(NamedTuple):
    """A prompt, and the seed of its answer."""

    ids: list[int]
    seed: int


class Written(NamedTuple):
    """What a model wrote, without the token that ends it."""

    ids: list[int]

    ended: bool
    """Whether the model ended it itself."""


def question_batches(lengths: Sequence[int], most_new: int) -> list[list[int]]:
    """Questions of like length together: for prompts of these lengths, who is in each batch."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        last = batches[-1] if batches else []
        if not last or len(last) == ROWS or (len(last) + 1) * (lengths[place] + most_new) > TOKENS:
            batches.append([])
        batches[-1].append(place)
    return batches


def fits(model: Any, question: Question, most_new: int) -> bool:
    """Whether a prompt and its answer are within what a model can read at once."""
    limit = context_length(model)
    return limit is None or len(question.ids) + most_new <= limit


@torch.inference_mode()
def write_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    most_new: int,
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[Written]:
    """Answers of at most `most_new` tokens, all at once; `progress` gets the tokens of each place.

    A token is drawn by one random number, of the question's seed and the place in the answer, so an
    answer depends on what it is batched with by rounding alone. Raises ValueError for tokens that
    the model has no vector for.
    """
    check_tokens(model.name_or_path, model, tokenizer, [question.ids for question in questions])
    ends = end_tokens(model, tokenizer)
    pad = pad_token(tokenizer, ends)
    ids, mask = left_padded([question.ids for question in questions], pad)
    draws = [
        torch.rand(most_new, generator=torch.Generator().manual_seed(question.seed))
        for question in questions
    ]
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=generation_config(most_new, ends, pad),
        logits_processor=LogitsProcessorList([_Drawn(torch.stack(draws), ends, progress)]),
    )
    return [Written(*until_end(tokens, ends)) for tokens in output[:, ids.shape[1] :].tolist()]


class _Drawn(LogitsProcessor):
    """Leaves of each row's distribution the token that its random number draws [rows, places]."""

    def __init__(self, draws: Tensor, ends: set[int], progress: Callable[[int], object]):
        self._draws = draws
        self._ends = torch.tensor(sorted(ends), dtype=torch.long)
        self._progress = progress
        self._place = 0
        self._going = torch.ones(len(draws), dtype=torch.bool)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        below = scores.float().softmax(-1).cumsum(-1)
        draw = self._draws[:, self._place].to(scores.device)[:, None] * below[:, -1:]
        token = torch.searchsorted(below, draw, right=True).clamp_max(scores.shape[-1] - 1)
        self._place += 1
        self._progress(int(self._going.sum()))
        self._going &= ~torch.isin(token[:, 0].cpu(), self._ends)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
