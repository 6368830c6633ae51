"""Several models over the same weights in memory."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel

from .placement import accelerate_hooks


def copy_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """A copy of a model with the same weights in the same memory; None where that cannot be made.

    Models that accelerate dispatched, and quantised ones, keep more in their modules than weights.
    """
    if getattr(model, "is_quantized", False) or any(map(accelerate_hooks, model.modules())):
        return None
    try:
        shared = (*model.parameters(), *model.buffers())
        return copy.deepcopy(model, {id(one): one for one in shared})
    except Exception:  # whatever a model's own code does not let be copied
        return None
