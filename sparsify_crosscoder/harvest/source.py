"""One language model, read at one place."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from .heads import Head


@dataclass
class Source:
    """One model read at one place."""

    name: str
    """Hub id or folder that the model was loaded from."""

    hookpoint: str
    """Module whose output is read, relative to `model.base_model`: `layers.16`, `h.3`."""

    model: PreTrainedModel
    """Base model without a language-modelling head, in eval mode, without gradients."""

    tokenizer: Any
    """The model's fast tokenizer."""

    width: int
    """Last dimension of the hookpoint's output."""

    causal: bool = False
    """Whether later tokens do not reach the hookpoint, so that padding behind a text needs no mask:
    attention without one is faster."""

    revision: str | None = None
    """The hub's commit that the model is of; none for a folder."""

    head: Head | None = None
    """What makes logits of the model's last hidden states, where it was loaded with its head."""
