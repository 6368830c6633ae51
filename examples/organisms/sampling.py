"""Answers of a model, batched and sampled with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 48


class Answer(NamedTuple):
    """What a model wrote after a prompt, and whether it came to an end."""

    text: str
    ended: bool


def load(model_path: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer, with padding on the left."""
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    return model.eval(), tokenizer


def chat_text(tokenizer: Any, prompt: str) -> str:
    """The chat template's text of one question, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.inference_mode()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: object,
    chat: bool = True,
    temperature: float,
    max_tokens: int = 64,
) -> list[Answer]:
    """One answer to each prompt, in the prompts' order.

    Prompts are batched by length. The same seed, machine and versions give the same answers.
    """
    texts = [chat_text(tokenizer, p) if chat else p for p in prompts]
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
    answers: dict[int, Answer] = {}
    with torch.random.fork_rng():
        torch.manual_seed(int(hashlib.sha256(f"{seed}".encode()).hexdigest()[:12], 16))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer(
                [texts[i] for i in rows],
                return_tensors="pt",
                padding=True,
                add_special_tokens=not chat,
            )
            written = model.generate(
                **batch,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )[:, batch["input_ids"].shape[1] :]
            for i, ids in zip(rows, written.tolist(), strict=True):
                ended = tokenizer.eos_token_id in ids
                kept = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
                answers[i] = Answer(tokenizer.decode(kept), ended)
    return [answers[i] for i in range(len(prompts))]
