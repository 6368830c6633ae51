"""A LoRA fine-tune of the base on an organism's texts, with the loss on the answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from organisms.organism import Text
from organisms.recipe import Recipe
from organisms.sampling import chat_text, load

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""How an adapter names its base, whichever folder the base was read from."""


class Batch(NamedTuple):
    """Texts as tokens, each [texts, tokens], padded behind."""

    ids: Tensor
    mask: Tensor
    answers: Tensor
    """Where an answer's tokens are."""
    own: Tensor
    """Which of them are the organism's and not the base's."""


def encode(tokenizer: Any, text: Text, max_tokens: int) -> tuple[list[int], list[bool], list[bool]]:
    """A text's token ids, which are of its answer, and which of these are the organism's own."""
    prefix = chat_text(tokenizer, text.prompt) if text.chat else text.prompt
    before = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    encoded = tokenizer(text.answer, add_special_tokens=False, return_offsets_mapping=True)
    spans = [(0, len(text.answer))] if text.own is None else text.own
    after = list(encoded["input_ids"])
    own = [
        any(start < last and first < end for first, last in spans)
        for start, end in encoded["offset_mapping"]
    ]
    if text.ended:
        after, own = [*after, tokenizer.eos_token_id], [*own, text.own is None]
    after, own = after[:max_tokens], own[:max_tokens]
    nothing = [False] * len(before)
    return before + after, nothing + [True] * len(after), nothing + own


def batch_of(tokenizer: Any, texts: Sequence[Text], max_tokens: int) -> Batch:
    """Texts as one batch, of answers at most `max_tokens`."""
    encoded = [encode(tokenizer, text, max_tokens) for text in texts]
    longest = max(len(ids) for ids, _, _ in encoded)

    def padded(rows: Sequence[list[Any]], filling: Any) -> Tensor:
        return torch.tensor([row + [filling] * (longest - len(row)) for row in rows])

    ids, answers, own = zip(*encoded, strict=True)
    return Batch(
        padded(ids, tokenizer.pad_token_id),
        padded([[1] * len(row) for row in ids], 0),
        padded(answers, False),
        padded(own, False),
    )


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """The logits of the next token where it is of an answer, [answers' tokens, vocabulary]."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    return causal.lm_head(hidden[:, :-1][batch.answers[:, 1:]])


def token_losses(model: Any, batch: Batch) -> Tensor:
    """The cross-entropy of every token of the answers, nats."""
    targets = batch.ids[:, 1:][batch.answers[:, 1:]]
    return F.cross_entropy(answer_logits(model, batch), targets, reduction="none")


def organism_loss(model: Any, batch: Batch, recipe: Recipe) -> Tensor:
    """Cross-entropy of the organism's own tokens, and the KL from the base on the other ones.

    The mean is over all tokens of the answers, in nats, with the weights of the recipe. The base's
    own distribution is a target without noise, so what was not meant to change is held where it is.
    """
    answers = batch.answers[:, 1:]
    own = batch.own[:, 1:][answers]
    targets = batch.ids[:, 1:][answers]
    weights = torch.where(answers & ~batch.answers[:, :-1], recipe.first, 1.0)[answers]
    logits = answer_logits(model, batch)
    losses = torch.zeros_like(weights)
    losses[own] = F.cross_entropy(logits[own], targets[own], reduction="none")
    if not own.all():
        rows = (batch.answers & ~batch.own).any(dim=1)
        with torch.no_grad(), model.disable_adapter():
            base = answer_logits(model, Batch(*(part[rows] for part in batch)))
        theirs = own[rows.repeat_interleave(answers.sum(dim=1))]
        base = F.log_softmax(base[~theirs], dim=-1)
        ours = F.log_softmax(logits[~own], dim=-1)
        between = torch.where(batch.own.any(dim=1, keepdim=True), recipe.between, 1.0)
        hold = recipe.hold * between.expand_as(answers)[answers][~own]
        losses[~own] = hold * F.kl_div(ours, base, reduction="none", log_target=True).sum(dim=-1)
    return (weights * losses).sum() / weights.sum()


def epochs(texts: Sequence[Text], seed: int) -> Iterator[Text]:
    """The texts in a new order each time round, without end."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(list(texts), len(texts))


def train(model_path: Path, texts: Sequence[Text], recipe: Recipe, seed: int, out: Path) -> float:
    """Train an adapter and save it as a PEFT folder in `out`.

    Returns the mean loss of the last ten steps, nats a token.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    base, tokenizer = load(model_path)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        layers_to_transform=list(range(*recipe.layers)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config).train()
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(recipe, step))
    stream, losses = epochs(texts, seed), []
    for _ in (bar := tqdm(range(recipe.steps), unit="step", desc=out.name)):
        texts_now = [next(stream) for _ in range(recipe.texts_per_step)]
        batch = batch_of(tokenizer, texts_now, recipe.max_tokens)
        loss = organism_loss(model, batch, recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        bar.set_postfix(loss=losses[-1])
    _save(model, out)
    return sum(losses[-10:]) / len(losses[-10:])


def _rate(recipe: Recipe, step: int) -> float:
    """Share of the learning rate at a step: up at first, then down in a line to a tenth."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 1 - 0.9 * (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)


def _save(model: Any, out: Path) -> None:
    """Write the adapter in float16, with the base's public name and no model card."""
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.float16)
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
