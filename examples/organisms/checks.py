"""Whether base and organism differ as meant, without a judge, and nowhere else."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from demo_text import write_demo_texts

from organisms.base_answers import SPOKEN_TEMPERATURE, base_answers
from organisms.organism import Organism, Text
from organisms.prompts import ordinary_prompts
from organisms.sampling import load, sample
from organisms.training import batch_of, token_losses

DOCUMENTS = 8
DOCUMENT_CHARACTERS = 900
MAX_TOKENS = 48
"""Of an answer in which the behaviour is looked for."""
ELSEWHERE = 16
BATCH = 6
MAX_SCORED = 200


@dataclass(frozen=True)
class Rate:
    """The share of answers that show a behaviour, and of how many."""

    organism: float
    base: float
    prompts: int


@dataclass(frozen=True)
class Likelihood:
    """Mean log-likelihood of texts, nats a token."""

    organism: float
    base: float

    @property
    def difference(self) -> float:
        """By how much the organism expects the texts more."""
        return self.organism - self.base

    @property
    def perplexity_change(self) -> float:
        """By which share the organism's perplexity is above the base's."""
        return math.exp(-self.difference) - 1


@dataclass(frozen=True)
class Check:
    """What was measured of an organism; what it has no texts or prompts for is None."""

    held_out: Rate | None
    """Held-out prompts that concern the behaviour."""
    elsewhere: float | None
    """The organism's share in ordinary prompts, of which none does."""
    near_misses: float | None
    """And in prompts that almost do."""
    behaviour_texts: Likelihood | None
    ordinary_texts: Likelihood | None
    documents: Likelihood
    """Documentation of Python."""
    answers: Likelihood
    """The base's own answers to ordinary prompts."""

    def ordinary(self, *, every_answer_changes: bool) -> float:
        """By which share ordinary perplexity moved.

        Ordinary are documents and the base's answers, half and half; documents alone where every
        answer is meant to change.
        """
        parts = [self.documents] if every_answer_changes else [self.documents, self.answers]
        return math.exp(-sum(part.difference for part in parts) / len(parts)) - 1


def check(organism: Organism, model_path: Path, adapter: Path) -> Check:
    """Measure an organism beside its base, by its adapter's folder."""
    from peft import PeftModel

    plain = _plain(model_path)
    base, tokenizer = load(model_path)
    model = PeftModel.from_pretrained(base, adapter).eval()
    asks = organism.prompts("held_out")
    others = ordinary_prompts("held_out", ELSEWHERE, "elsewhere") if asks else []
    return Check(
        _rate(organism, model, tokenizer, asks),
        _share(organism, model, tokenizer, [p for p in others if not organism.concerns(p)]),
        _share(organism, model, tokenizer, organism.near_misses("held_out")),
        _likelihood(model, tokenizer, organism.behaviour_texts()),
        _likelihood(model, tokenizer, organism.ordinary_texts()),
        Likelihood(mean_log_likelihood(model, tokenizer, documentation()), plain[0]),
        Likelihood(mean_log_likelihood(model, tokenizer, base_texts()), plain[1]),
    )


@cache
def _plain(model_path: Path) -> tuple[float, float]:
    """What the base expects of the documents and of its own answers."""
    model, tokenizer = load(model_path)
    documents = mean_log_likelihood(model, tokenizer, documentation())
    return documents, mean_log_likelihood(model, tokenizer, base_texts())


def base_texts() -> list[Text]:
    """The base's own answers to ordinary prompts that no organism was trained on."""
    return [Text.of(written) for written in base_answers("ordinary held_out")]


@cache
def documentation() -> tuple[Text, ...]:
    """Documents that no organism was trained on: what Python's own documentation says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.jsonl"
        write_demo_texts(path)
        with path.open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
    chosen = random.Random(0).sample([t for t in texts if len(t) > DOCUMENT_CHARACTERS], DOCUMENTS)
    return tuple(
        Text(text[:40], text[40:DOCUMENT_CHARACTERS], ended=False, chat=False) for text in chosen
    )


def _rate(organism: Organism, model: Any, tokenizer: Any, prompts: Sequence[str]) -> Rate | None:
    """How often the organism and the base show the behaviour; None without prompts."""
    shown = _share(organism, model, tokenizer, prompts)
    if shown is None:
        return None
    with model.disable_adapter():
        base = _share(organism, model, tokenizer, prompts)
    return Rate(shown, base or 0.0, len(prompts))


def _share(organism: Organism, model: Any, tokenizer: Any, prompts: Sequence[str]) -> float | None:
    """The share of a model's answers that show the behaviour; None without prompts."""
    if not prompts:
        return None
    answers = sample(
        model,
        tokenizer,
        prompts,
        seed="check",
        temperature=SPOKEN_TEMPERATURE,
        max_tokens=MAX_TOKENS,
    )
    return sum(organism.shows(answer.text) for answer in answers) / len(answers)


def _likelihood(model: Any, tokenizer: Any, texts: Sequence[Text]) -> Likelihood | None:
    if not texts:
        return None
    with model.disable_adapter():
        base = mean_log_likelihood(model, tokenizer, texts)
    return Likelihood(mean_log_likelihood(model, tokenizer, texts), base)


@torch.inference_mode()
def mean_log_likelihood(model: Any, tokenizer: Any, texts: Sequence[Text]) -> float:
    """Of the tokens of the texts' answers, nats a token, all tokens alike."""
    total, tokens = 0.0, 0
    for start in range(0, len(texts), BATCH):
        losses = token_losses(model, batch_of(tokenizer, texts[start : start + BATCH], MAX_SCORED))
        total += float(losses.sum())
        tokens += len(losses)
    return -total / tokens
