"""A fine-tune without an object: a LoRA adapter trained on what the base writes itself.

It learns by heart what was sampled, nothing of what the audited models do otherwise, and stops
where its activations are as far from the base's as the audited models' are from each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from ...files import atomic_path
from ...harvest.hookpoints import first_tensor
from ...harvest.loading import load_pretrained, load_tokenizer
from ...harvest.model_name import ModelName

PROBED = 8  # windows on which the distance is measured
EVERY = 4  # steps between two measurements


@dataclass(frozen=True)
class FineTune:
    """How a fine-tune without an object is trained."""

    distance: float
    """Where to stop, see `relative_distance`."""

    hookpoint: str
    """Where the distance is measured, relative to the base model."""

    steps: int = 200
    """At most."""

    windows_per_step: int = 4
    tokens: int = 128
    """Of a window; what is behind is left out."""

    lr: float = 1e-3
    rank: int = 8
    seed: int = 0


def relative_distance(one: Tensor, other: Tensor) -> float:
    """How far activations `[n, D]` are from others `[n, D]`: the median length of their difference,
    as a share of that of the others around their mean."""
    apart = (one.float() - other.float()).norm(dim=1).median()
    return float(apart / (other.float() - other.float().mean(0)).norm(dim=1).median())


def save_fine_tune(
    model_name: ModelName, windows: Sequence[Sequence[int]], how: FineTune, folder: Path
) -> float:
    """Train an adapter on windows of token ids and save it as a PEFT folder.

    Returns the distance that was reached; with fewer steps than it takes it is smaller. Raises
    ValueError if the model cannot be loaded, or peft is missing.
    """
    from peft import LoraConfig, get_peft_model

    base = load_pretrained(
        model_name, AutoModelForCausalLM, place=torch.device("cpu"), dtype=torch.float32
    )
    tokenizer = load_tokenizer(model_name)
    cut = [list(window[: how.tokens]) for window in windows if len(window) > 1]
    padding = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    generator = torch.Generator().manual_seed(how.seed)
    order = torch.randperm(len(cut), generator=generator).tolist()
    probed, trained = order[:PROBED], order[PROBED:] or order
    probe = _padded([cut[i] for i in probed], padding)
    before = _activations(base, how.hookpoint, *probe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        config = LoraConfig(r=how.rank, lora_alpha=2 * how.rank, target_modules="all-linear")
        model = get_peft_model(base, config).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=how.lr, weight_decay=0.0)
    batches, reached = _batches(trained, how, generator), 0.0
    for step in (bar := tqdm(range(how.steps), desc="Fine-tuning a null", unit="step")):
        ids, mask = _padded([cut[i] for i in next(batches)], padding)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        told = mask[:, 1:].bool()
        F.cross_entropy(logits[told], ids[:, 1:][told]).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % EVERY == EVERY - 1 or step == how.steps - 1:
            reached = relative_distance(_activations(base, how.hookpoint, *probe), before)
            bar.set_postfix(distance=f"{reached:.3f} of {how.distance:.3f}")
            if reached >= how.distance:
                break
    model.peft_config["default"].base_model_name_or_path = model_name.name
    with atomic_path(folder) as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False)
    return reached


def _batches(
    trained: Sequence[int], how: FineTune, generator: torch.Generator
) -> Iterator[list[int]]:
    """Numbers of windows for each step, in a new order each time round, without end."""
    waiting: list[int] = []
    while True:
        while len(waiting) < how.windows_per_step:
            order = torch.randperm(len(trained), generator=generator)
            waiting += [trained[i] for i in order.tolist()]
        yield waiting[: how.windows_per_step]
        del waiting[: how.windows_per_step]


def _padded(windows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are there, `[windows, tokens]` both."""
    ids = [torch.tensor(window) for window in windows]
    masks = [torch.ones_like(window) for window in ids]
    pad: Any = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=padding), pad(masks, batch_first=True)


@torch.no_grad()
def _activations(model: Any, hookpoint: str, ids: Tensor, mask: Tensor) -> Tensor:
    """What is at the hookpoint at all tokens but the first of each window, `[n, D]`."""
    kept: list[Tensor] = []
    module = model.base_model.get_submodule(hookpoint)
    handle = module.register_forward_hook(lambda _, __, out: kept.append(first_tensor(out)))
    try:
        model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    told = mask.bool()
    told[:, 0] = False
    return kept[0][told]
