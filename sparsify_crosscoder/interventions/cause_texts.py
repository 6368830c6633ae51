"""Answers by which a cause is judged, found without knowing what the behaviour is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..evaluation.top import Occurrences, check_latents, collect_occurrences
from ..runs.run import Run
from ..text.messages import normalize_messages
from ..text.window_numbers import window_numbers
from .answer_likelihood import Answered
from .cause import Behaviour
from .generation import Answering, Sampling, generate
from .prompts import Prompt

ANSWERS = Sampling(max_new_tokens=48, temperature=0.7, top_p=0.9)


def own_answers(
    model: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling = ANSWERS,
    *,
    chat: bool | None = None,
) -> Behaviour:
    """What two models answer to the same prompts: `model`, which is thought to show a behaviour
    there, and `reference`, which does not.

    Prompts that both answer alike, or that one answers with nothing, are left out. Raises
    ValueError as `generate` does.
    """
    answering = Answering(chat=chat)
    shown, elsewhere = (
        [
            answers[0].text
            for answers in generate(
                one, prompts, [], [[]], sampling, tokenizer=tokenizer, answering=answering
            ).answers
        ]
        for one in (model, reference)
    )
    kept = [
        row
        for row, (one, other) in enumerate(zip(shown, elsewhere, strict=True))
        if one.strip() and other.strip() and one != other
    ]
    return Behaviour(
        *([Answered(prompts[row], answers[row]) for row in kept] for answers in (shown, elsewhere))
    )


def strongest_prompts(
    run: Run,
    latents: Sequence[int],
    count: int = 16,
    *,
    leave_out: Collection[int] = (),
    pairs: int = 100_000,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> list[Prompt]:
    """The beginnings of the run's texts in which latents are most active per pair, strongest first.

    A conversation's is all that comes before its last answer, another text's its first half. Texts
    whose numbers are in `leave_out`, such as those by which the latents were chosen, and texts
    without any activity are left out. Raises ValueError for a latent that there is not.
    """
    crosscoder = run.crosscoder(seed, device)
    check_latents(crosscoder, latents)
    ranked = ActiveTexts.of(run, crosscoder, pairs).strongest(latents)
    texts = run.texts()
    prompts: list[Prompt] = []
    for number in ranked:
        if len(prompts) == count:
            break
        prompt = None if number in leave_out else prompt_of(texts[number])
        if prompt is not None and prompt not in prompts:
            prompts.append(prompt)
    return prompts


@dataclass(frozen=True)
class ActiveTexts:
    """How active a crosscoder's latents are in the texts of the run's first pairs."""

    found: Occurrences
    text_of_pair: Tensor
    """Number of each pair's text."""

    @classmethod
    @torch.no_grad()
    def of(cls, run: Run, crosscoder: Crosscoder, pairs: int = 100_000) -> ActiveTexts:
        """On `pairs` pairs, with one of the run's crosscoders on its device."""
        first = run.first_pairs(pairs, crosscoder.device)
        found = collect_occurrences(crosscoder, first.chunks, run.config.outlier_multiple)
        text_ids = torch.from_numpy(window_numbers(first.windows, "text_id"))
        return cls(found, text_ids[found.windows])

    def strongest(self, latents: Sequence[int]) -> list[int]:
        """Numbers of the texts in which latents are active, most active per pair first."""
        counts = torch.bincount(self.text_of_pair)
        entries = torch.isin(self.found.latents, torch.tensor(list(latents)))
        texts = self.text_of_pair[self.found.rows[entries]]
        sums = torch.zeros(len(counts)).index_add_(0, texts, self.found.acts[entries])
        activity = sums / counts.clamp_min(1)
        order = activity.argsort(descending=True)
        return order[activity[order] > 0].tolist()


def prompt_of(row: Mapping[str, Any]) -> Prompt | None:
    """What is to be answered or gone on with in a row of texts; None where there is nothing."""
    if row.get("messages"):
        messages = normalize_messages(row["messages"])
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
        return [{"role": m["role"], "content": m["content"]} for m in messages[:last]] or None
    return row["text"][: len(row["text"]) // 2].rstrip() or None
