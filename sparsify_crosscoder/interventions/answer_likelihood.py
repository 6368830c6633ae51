"""How likely a model finds answers that are given, under one intervention after another.

N answers, B rows of a batch, T columns (prompts padded on the left, answers on the right), D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..harvest.batched_generation import left_padded
from ..harvest.hookpoints import first_tensor, normalize_hookpoint
from ..harvest.limits import check_texts
from .prompts import Prompt, encode_prompt
from .resuming import blocks_before, giving
from .steering import Steering, steered

_MOST_LOGITS = 2**25
_MOST_ROWS = 16
_TOLERANCE = 1e-3  # nats a token; other shapes of a product round otherwise


class Answered(NamedTuple):
    """A prompt and what is written after it."""

    prompt: Prompt
    answer: str


class _Batch(NamedTuple):
    rows: list[int]
    """Which of the answers."""

    ids: Tensor
    """[B, T]."""

    mask: Tensor
    """[B, T]: what is no padding."""

    places: int
    """Columns from the first token of the answers on."""

    counted: Tensor
    """[B, places]: tokens of the answers."""

    @property
    def prompts(self) -> Tensor:
        """Attention mask of the prompts alone, [B, T - places]."""
        return self.mask[:, : self.mask.shape[1] - self.places]


Residuals = list[Tensor]
"""A hookpoint's output for each batch, [B, T, D]."""


class GivenAnswers:
    """Answers that a model reads again and again, each time with another steering.

    What it computes before the layer of the first hookpoint is computed once, if it comes to the
    same, which is tried. Likelihoods are means over an answer's tokens, in nats, `[N]`; what ends
    an answer is not among them.

    Args:
        model: a causal language model of `transformers`, with its `tokenizer`.
        answered: N prompts and answers.
        hookpoints: where later steerings act.
        chat: whether a prompt that is a text is a user's message; None: if there is a template.

    Raises ValueError for an answer without tokens, and for what the model cannot read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        answered: Sequence[Answered],
        hookpoints: Sequence[str],
        *,
        chat: bool | None = None,
    ):
        self.model = model
        self.hookpoints = [normalize_hookpoint(model, hookpoint) for hookpoint in hookpoints]
        self.batches = _batches(model, tokenizer, answered, chat)
        self._skipped = blocks_before(model, self.hookpoints)
        self._entered: list[Any] = []
        self.unsteered = self._unsteered(len(answered))

    def likelihoods(
        self,
        steering: Sequence[Steering] = (),
        strength: float = 1.0,
        centers: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> Tensor:
        """Mean log-likelihood of every answer's tokens where all of `steering` act, `[N]`.

        `centers`, one for each batch by hookpoint, take the place of the steerings' own. Raises
        ValueError for a steering that is not at one of `hookpoints`.
        """
        places = [normalize_hookpoint(self.model, one.hookpoint) for one in steering]
        if missing := sorted(set(places) - set(self.hookpoints)):
            raise ValueError(f"'{missing[0]}' is not among the hookpoints {self.hookpoints}.")
        found = torch.zeros(sum(len(batch.rows) for batch in self.batches))
        for number, batch in enumerate(self.batches):
            acting = list(steering)
            if centers is not None:
                acting = [replace(s, center=centers[s.hookpoint][number]) for s in acting]
            found[batch.rows] = self._read(number, acting, strength)
        return found

    @torch.inference_mode()
    def residuals(self, hookpoints: Sequence[str], model: Any = None) -> dict[str, Residuals]:
        """What comes out at hookpoints without steering, by their names; of another `model` that
        reads the same tokens, if one is given."""
        model = self.model if model is None else model
        found: dict[str, Residuals] = {hookpoint: [] for hookpoint in hookpoints}
        with _keeping(model, found):
            for batch in self.batches:
                model.base_model(**_inputs(model, batch), use_cache=False)
        return found

    def tokens(self, residuals: Residuals, answers: Sequence[int] | None = None) -> Tensor:
        """The rows of a hookpoint's output that stand for text, `[tokens, D]`; of some answers and
        their prompts, or of all. Left out is each text's first token, whose activation is like no
        other's."""
        rows = []
        for batch, hidden in zip(self.batches, residuals, strict=True):
            wanted = torch.tensor([answers is None or row in answers for row in batch.rows])
            text = batch.mask.bool() & (batch.mask.cumsum(1) > 1) & wanted[:, None]
            rows.append(hidden[text.to(hidden.device)].float().cpu())
        return torch.cat(rows)

    def _unsteered(self, count: int) -> Tensor:
        """Read everything once in full, keeping what enters the first layer that is steered."""
        plain, resumed = torch.zeros(count), torch.zeros(count)
        if not self._skipped:
            return self.likelihoods()
        kept: list[Any] = []
        handle = self._skipped[-1].register_forward_hook(
            lambda module, args, output: kept.append(output)
        )
        try:
            for number, batch in enumerate(self.batches):
                plain[batch.rows] = self._read(number)
        finally:
            handle.remove()
        self._entered = kept
        for number, batch in enumerate(self.batches):
            resumed[batch.rows] = self._read(number)
        if not torch.allclose(plain, resumed, rtol=0, atol=_TOLERANCE):
            self._entered = []
        return plain

    @torch.inference_mode()
    def _read(
        self, number: int, steering: Sequence[Steering] = (), strength: float = 1.0
    ) -> Tensor:
        batch, inputs = self.batches[number], _inputs(self.model, self.batches[number])
        # steered() reads a token to know the order of its hookpoints, which must not be skipped.
        acting = (
            steered(self.model, steering, strength, batch.prompts) if steering else nullcontext()
        )
        resumed = giving(self._skipped, self._entered[number]) if self._entered else nullcontext()
        with acting, resumed:
            output = self.model(**inputs, use_cache=False, logits_to_keep=batch.places + 1)
        logits = output.logits[:, -batch.places - 1 : -1].float()
        wanted = inputs["input_ids"][:, -batch.places :, None]
        chosen = logits.gather(-1, wanted)[..., 0] - logits.logsumexp(-1)
        counted = batch.counted.to(chosen.device)
        return ((chosen * counted).sum(1) / counted.sum(1)).cpu()


def _batches(
    model: Any, tokenizer: Any, answered: Sequence[Answered], chat: bool | None
) -> list[_Batch]:
    prompts = [encode_prompt(tokenizer, one.prompt, chat) for one in answered]
    answers = [tokenizer(one.answer, add_special_tokens=False)["input_ids"] for one in answered]
    for one, ids in zip(answered, answers, strict=True):
        if not ids:
            raise ValueError(f"The answer to {one.prompt!r} has no tokens; leave it out.")
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    check_texts(model, tokenizer, whole)
    longest = max(map(len, answers), default=0)
    vocabulary = model.config.get_text_config().vocab_size
    at_once = min(max(_MOST_LOGITS // (vocabulary * (longest + 1)), 1), _MOST_ROWS)
    order = sorted(range(len(answered)), key=lambda row: (len(prompts[row]), len(answers[row])))
    batches = []
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        ids, mask = left_padded([prompts[row] for row in rows], 0)
        places = max(len(answers[row]) for row in rows)
        behind, counted = torch.zeros(2, len(rows), places, dtype=torch.long)
        for line, row in enumerate(rows):
            behind[line, : len(answers[row])] = torch.tensor(answers[row])
            counted[line, : len(answers[row])] = 1
        batches.append(
            _Batch(
                rows, torch.cat([ids, behind], 1), torch.cat([mask, counted], 1), places, counted
            )
        )
    return batches


def _inputs(model: Any, batch: _Batch) -> dict[str, Tensor]:
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (batch.mask.cumsum(1) - 1).clamp_min(0)
    return {name: value.to(model.device) for name, value in inputs.items()}


@contextmanager
def _keeping(model: Any, kept: dict[str, Residuals]) -> Iterator[None]:
    """Inside, every forward adds what comes out at the hookpoints to `kept`."""
    handles = [
        model.base_model.get_submodule(normalize_hookpoint(model, hookpoint)).register_forward_hook(
            lambda module, args, output, rows=rows: rows.append(first_tensor(output))
        )
        for hookpoint, rows in kept.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
