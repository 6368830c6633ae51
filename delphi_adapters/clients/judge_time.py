"""What a judge on the own machine takes: timed on a few tokens before it is asked, or computed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparsify_crosscoder.harvest.loading import load_config, load_tokenizer
from sparsify_crosscoder.harvest.model_name import ModelName

from .machine_speed import bytes_per_second, operations_per_second
from .records import USUAL_ANSWER

if TYPE_CHECKING:
    from .transformers_client import TransformersClient

READ_TOKENS = 16  # of each row of the trial
WRITTEN_TOKENS = 3
EFFICIENCY = 0.5  # of a large product, which the parts of a model reach
SMALL = 1_000_000_000
"""Parameters; what smaller models say of texts is seldom to be believed."""


@dataclass(frozen=True)
class JudgeSpeed:
    """Tokens a second, over all prompts that are answered together."""

    read: float
    written: float

    def seconds(self, read_tokens: float, written_tokens: float) -> float:
        return read_tokens / self.read + written_tokens / self.written


@torch.inference_mode()
def timed(client: TransformersClient) -> JudgeSpeed:
    """Time a judge on short batches of as many rows as it answers together.

    Takes as long as reading a few hundred tokens and writing a few, which is seconds also where a
    whole answer takes minutes.
    """
    from transformers import GenerationConfig

    from sparsify_crosscoder.harvest.batched_generation import end_tokens

    model: Any = client.language_model
    rows = client.batch_size
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(rows * READ_TOKENS, device=model.device).view(rows, -1) % size

    def seconds(new_tokens: int) -> float:
        begun = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                eos_token_id=sorted(end_tokens(model, client.tokenizer)) or None,
                pad_token_id=0,
                do_sample=False,
            ),
        )
        return time.perf_counter() - begun

    seconds(1)  # what is done once is not timed
    reading = seconds(1)
    writing = max(seconds(1 + WRITTEN_TOKENS) - reading, 1e-3)
    return JudgeSpeed(ids.numel() / reading, rows * WRITTEN_TOKENS / writing)


def computed(name: str, operations: float, bandwidth: float) -> JudgeSpeed:
    """What a model's size lets one expect, without its weights.

    From the operations and the bytes that the machine does in a second.
    """
    size = _parameters(name)
    read = operations * EFFICIENCY / (2 * size)
    return JudgeSpeed(read, 1 / (1 / read + 2 * size / bandwidth))


def say_computed(name: str, device: torch.device, prompts: Sequence[Any], scale: float) -> None:
    """Print what so many prompts take by a model's size, for a judge that is not loaded."""
    characters = sum(len(json.dumps(prompt, ensure_ascii=False)) for prompt in prompts)
    speed = computed(name, operations_per_second(device), bytes_per_second(device))
    seconds = speed.seconds(characters * scale / 4, len(prompts) * scale * USUAL_ANSWER)
    print(
        f"About {duration(seconds)} on this machine, computed from the size of {name}; how fast it "
        "is indeed is not known before it is loaded, and said before it is asked."
    )
    for line in named_cautions(name):
        print(line)


def say_time(client: Any, prompts: Sequence[Any], scale: float, what: str) -> float | None:
    """Print what `scale` times as many prompts take on this machine; returns it in seconds.

    Answers are taken to have the usual length or as many tokens as are allowed. None for a judge
    that is asked elsewhere.
    """
    from .transformers_client import TransformersClient

    if not isinstance(client, TransformersClient) or not len(prompts) or not scale:
        return None
    for line in client_cautions(client):
        print(line)
    print(f"Timing {client.model} on a few tokens ...", flush=True)
    speed = timed(client)
    read = sum(len(client.encode(prompt)) for prompt in prompts) * scale
    written = len(prompts) * scale * min(USUAL_ANSWER, client.max_new_tokens)
    seconds = speed.seconds(read, written)
    print(
        f"About {duration(seconds)} on this machine for {what}: {read:,.0f} tokens to read at "
        f"{speed.read:,.0f} a second, {written:,.0f} to write at {speed.written:,.0f} a second.",
        flush=True,
    )
    return seconds


def cautions(tokenizer: Any, parameters: int, name: str) -> list[str]:
    """A line for each reason why a local model cannot judge."""
    found = []
    if not getattr(tokenizer, "chat_template", None):
        found.append(
            f"Caution: {name} has no chat template, so it is likely no chat model; such a model "
            "goes on with a question instead of answering it."
        )
    if parameters < SMALL:
        found.append(
            f"Caution: {name} has {parameters / 1e6:,.0f} million parameters; models of less than "
            "a billion can hardly judge. --judge none asks nobody."
        )
    return found


def named_cautions(name: str) -> list[str]:
    """`cautions` of a local model that is not loaded."""
    return cautions(load_tokenizer(ModelName(name)), _parameters(name), name)


def _parameters(name: str) -> int:
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(load_config(ModelName(name)))
    return sum(p.numel() for p in model.parameters())


def client_cautions(client: Any) -> list[str]:
    """`cautions` of a local judge; nothing of one that is asked elsewhere."""
    from .transformers_client import TransformersClient

    if not isinstance(client, TransformersClient):
        return []
    parameters = sum(p.numel() for p in client.language_model.parameters())
    return cautions(client.tokenizer, parameters, client.model)


def duration(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3 h 20 min", "2 days 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"
