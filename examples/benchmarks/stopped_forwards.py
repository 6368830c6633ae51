"""Activations as public code gets them at its best: stopped at the layer, sorted by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparsify_crosscoder.harvest.hookpoints import first_tensor


def sorted_batches(
    windows: Dataset, source: int, batch_size: int
) -> Iterator[tuple[list[list[int]], Tensor, Tensor]]:
    """Windows of similar length: their pairs, token ids and attention mask [windows, tokens]."""
    ids, pairs = windows[f"input_ids_{source}"][:], windows[f"pairs_{source}"][:]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [torch.tensor(ids[i]) for i in chosen]
        masks = [torch.ones_like(row) for row in rows]
        padded = pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True)
        yield [pairs[i] for i in chosen], *padded


class _Stopped(Exception):
    """Ends a forward."""


@torch.inference_mode()
def by_hook(model: Any, hookpoint: str, windows: Dataset, source: int, batch_size: int) -> Tensor:
    """Activations [pairs, D] by a hook that ends the forward, windows in order of length."""
    kept: list[Tensor] = []

    def stop(module: Any, args: Any, output: Any) -> None:
        kept.append(first_tensor(output))
        raise _Stopped

    found = []
    handle = model.base_model.get_submodule(hookpoint).register_forward_hook(stop)
    try:
        for pairs, ids, mask in sorted_batches(windows, source, batch_size):
            inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            try:
                model.base_model(**inputs, use_cache=False)
            except _Stopped:
                hidden = kept.pop()
                found += [hidden[i, own] for i, own in enumerate(pairs)]
    finally:
        handle.remove()
    return torch.cat(found)


def by_nnsight(
    model: Any, hookpoint: str, windows: Dataset, source: int, batch_size: int
) -> Callable[[], Tensor]:
    """The same by an nnsight trace that stops at the layer; what to call for the activations."""
    from nnsight import NNsight

    traced: Any = NNsight(model.base_model)
    layer = traced
    for part in hookpoint.split("."):
        layer = layer[int(part)] if part.isdecimal() else getattr(layer, part)

    @torch.inference_mode()
    def run() -> Tensor:
        found = []
        for pairs, ids, mask in sorted_batches(windows, source, batch_size):
            inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            with traced.trace(**inputs, use_cache=False) as tracer:
                output = layer.output.save()
                tracer.stop()
            hidden = first_tensor(output)
            found += [hidden[i, own] for i, own in enumerate(pairs)]
        return torch.cat(found)

    return run
