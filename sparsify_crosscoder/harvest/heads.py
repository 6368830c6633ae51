"""A language model's head by itself: from last hidden states to the logits of next tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .model_files import ModelError
from .placement import input_device, module_device

Heads = Literal["auto", "on", "off"]
"""Whether models are loaded with their heads; `auto` is where all of them share a vocabulary."""


class Head:
    """The logits that a causal language model makes of the last hidden states of its base model.

    They go through the model's own `forward`, in which its base gives the states, so that biases,
    scaling and soft-capping are those of its class. Raises ModelError where that does not give
    what the whole model gives.
    """

    def __init__(self, model: PreTrainedModel, name: str):
        base = model.base_model
        place = next((key for key, part in model.named_children() if part is base), None)
        embeddings = model.get_output_embeddings()
        if place is None or embeddings is None:
            raise ModelError(f"The model {name!r} has no head that could be used by itself.")
        self.whole = model
        """The model that it is of, whose weights it shares."""
        self._device = module_device(embeddings) or input_device(model)
        self._model: Any = copy.copy(model)
        for of_whole in ("forward", "_hf_hook"):  # what accelerate put around the model
            self._model.__dict__.pop(of_whole, None)
        self._model._modules = {**model._modules, place: _Given()}
        self.width, self.num_tokens = self._try(model, name)

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] in float32, of last hidden states [n, width]."""
        with torch.autocast(self._device.type, enabled=False):
            states = hidden.to(self._device)[None]
            return self._model(inputs_embeds=states, use_cache=False).logits[0].float()

    @torch.inference_mode()
    def _try(self, model: PreTrainedModel, name: str) -> tuple[int, int]:
        """Width of the last hidden states and size of the vocabulary, of a forward of both."""
        size = model.config.get_text_config(decoder=True).vocab_size
        ids = torch.linspace(0, size - 1, 8).long()[None].to(input_device(model))
        whole = model(input_ids=ids, use_cache=False).logits[0].float()
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        try:
            parts = self(states).to(whole.device)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            parts = None
        # Mixtures of experts may round differently from one forward to the next.
        if (
            parts is None
            or parts.shape != whole.shape
            or float((parts - whole).norm()) > 1e-2 * float(whole.norm())
        ):
            raise ModelError(f"The head of {name!r} cannot be used without the whole model.")
        return states.shape[1], whole.shape[1]


class _Given(nn.Module):
    """Stands for a base model whose last hidden states are known."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **options: Any) -> Any:
        return _Output(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> _Given:
        """What a model calls whose base has its decoder inside (OPT)."""
        return self


class _Output(BaseModelOutputWithPast):
    """Whatever else a base model may give is absent."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def has_head(config: Any) -> bool:
    """Whether a checkpoint is of a causal language model, and `AutoModel` gives its base."""
    saved_as = getattr(config, "architectures", None) or []
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return any("LM" in name or "Generation" in name for name in saved_as)
    language_model = AutoModelForCausalLM._model_mapping.get(type(config), None)
    base = AutoModel._model_mapping.get(type(config), None)
    return base is not None and getattr(language_model, "__name__", None) in saved_as


def share_vocabulary(tokenizers: Sequence[Any]) -> bool:
    """Whether all tokenizers call the same tokens by the same ids."""
    first, *others = [tokenizer.get_vocab() for tokenizer in tokenizers]
    return all(other == first for other in others)
