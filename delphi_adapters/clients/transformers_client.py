"""delphi's client on a local Hugging Face model."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..delphi import compat  # noqa: F401

# isort: split
from delphi.clients.client import Client, Response

from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.harvest.batched_generation import (
    end_tokens,
    left_padded,
    pad_token,
    until_end,
)
from sparsify_crosscoder.harvest.limits import check_tokens, context_length
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.interventions.prompts import Prompt, encode_prompt

from .requests import UnsupportedArgument, split_system


class PromptTooLong(ValueError):
    """A prompt and its answer do not fit into the model's context."""


@dataclass(frozen=True)
class _Settings:
    """What prompts must share to be generated together."""

    max_new_tokens: int
    temperature: float
    """0 for greedy."""


@dataclass(eq=False)
class _Waiting:
    ids: list[int]
    settings: _Settings
    future: asyncio.Future[str]


@dataclass
class _Queue:
    """What belongs to one event loop."""

    waiting: list[_Waiting] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class TransformersClient(Client):
    """A local causal language model for delphi's explainers and scorers, on any device.

    Prompts that are asked for at the same time are generated together, padded on the left, up to
    `batch_size` of those with the same settings; the event loop goes on meanwhile. In low
    precision an answer can depend on what it was batched with.

    - model: a folder or name for `from_pretrained`, or `(model, tokenizer)`.
    - max_new_tokens: longest answer in tokens, unless delphi asks for another (`max_tokens`).
    - sampling: keep to the temperature that delphi passes, with torch's global generator; without
      it every answer is greedy.
    - device, dtype: where a model given by name is put, and its precision; by default what
      `hardware` chooses for writing. A model given as an object stays as it is.
    - trust_remote_code: run the code that comes with a model given by name.

    Conversations follow the tokenizer's chat template. Where the template has no system role, the
    system prompt comes before the first user message; without a template the conversation is
    plain text ("User: ...", "Assistant:") and a text is continued as it is. `outcomes` counts
    answers by "end_turn" and "max_tokens".
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        sampling: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
    ):
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError("batch_size and max_new_tokens must be at least 1.")
        if isinstance(model, str | Path):
            super().__init__(str(model))
            self.language_model, self.tokenizer = load_language_model(
                str(model),
                device=pick_device(device),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
        else:
            self.language_model, self.tokenizer = model
            name = getattr(self.language_model.config, "name_or_path", "")
            super().__init__(name or type(self.language_model).__name__)
        self.language_model.eval()
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.context: int | None = context_length(self.language_model)
        """Tokens that prompt and answer may have together; None where the model states none."""
        self.outcomes: Counter[str] = Counter()
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()
        self._lock = Lock()

    async def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, prompt: Prompt, **kwargs: Any
    ) -> Response:
        """Answer a text or a list of `{role, content}`.

        Takes `max_tokens` and `temperature`; `top_p` and `top_k` are ignored. Raises
        UnsupportedArgument (log probabilities, stop sequences), PromptTooLong, and ValueError for
        a prompt that is not a conversation.
        """
        settings = self._settings(dict(kwargs))
        ids = self.encode(prompt)
        if self.context is not None and len(ids) + settings.max_new_tokens > self.context:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens and its answer up to {settings.max_new_tokens}, "
                f"but {self.model} has a context of {self.context}. Lower max_new_tokens, or show "
                "fewer or shorter examples."
            )
        check_tokens(self.model, self.language_model, self.tokenizer, [ids])
        loop = asyncio.get_running_loop()
        waiting = _Waiting(ids, settings, loop.create_future())
        queue = self._queues.setdefault(loop, _Queue())
        queue.waiting.append(waiting)
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._work(queue))
        return Response(text=await waiting.future)

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids as the model gets them."""
        if not isinstance(prompt, str):
            messages, system = split_system(prompt)
            prompt = [*({"role": "system", "content": text} for text in system), *messages]
        return encode_prompt(self.tokenizer, prompt)

    def _settings(self, arguments: dict[str, Any]) -> _Settings:
        temperature = arguments.pop("temperature", None) or 0.0
        max_tokens = arguments.pop("max_tokens", None)
        max_tokens = self.max_new_tokens if max_tokens is None else max_tokens
        for name in ("top_p", "top_k"):
            arguments.pop(name, None)
        # A seed of 0 is a seed; log probabilities that are off are not asked for.
        refused = sorted(
            n for n, value in arguments.items() if value or (n == "seed" and value == 0)
        )
        if refused:
            raise UnsupportedArgument(
                f"TransformersClient cannot honour {refused}; it takes max_tokens and temperature."
            )
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a positive integer, not {max_tokens!r}.")
        return _Settings(max_tokens, float(temperature) if self.sampling else 0.0)

    async def _work(self, queue: _Queue) -> None:
        await asyncio.sleep(0)  # so that what is asked for in the same turn of the loop joins
        while queue.waiting:
            settings = queue.waiting[0].settings
            batch = [w for w in queue.waiting if w.settings == settings][: self.batch_size]
            queue.waiting = [w for w in queue.waiting if w not in batch]
            batch = [waiting for waiting in batch if not waiting.future.done()]
            if not batch:
                continue
            try:
                texts = await asyncio.to_thread(
                    self._generate, [waiting.ids for waiting in batch], settings
                )
            except Exception as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, text in zip(batch, texts, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(text)

    def _generate(self, prompts: list[list[int]], settings: _Settings) -> list[str]:
        from transformers import GenerationConfig

        model: Any = self.language_model
        tokenizer = self.tokenizer
        ends = end_tokens(model, tokenizer)
        pad = pad_token(tokenizer, ends)
        ids, mask = left_padded(prompts, pad)
        sampled = {"do_sample": True, "temperature": settings.temperature, "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            **(sampled if settings.temperature > 0 else {"do_sample": False}),
        )
        with self._lock, torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
            )
            return [self._finish(row, ends) for row in output[:, ids.shape[1] :].tolist()]

    def _finish(self, ids: list[int], ends: set[int]) -> str:
        answer, ended = until_end(ids, ends)
        self.outcomes["end_turn" if ended else "max_tokens"] += 1
        return self.tokenizer.decode(answer, skip_special_tokens=True)
