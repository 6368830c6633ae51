"""Forwards that begin behind the first blocks of a model, whose output is known already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


def blocks_before(model: Any, hookpoints: Sequence[str]) -> list[nn.Module]:
    """The blocks of a model's list of layers before the first that holds a hookpoint; none where
    the hookpoints are not in one list."""
    lists: set[str] = set()
    first: list[int] = []
    for hookpoint in hookpoints:
        parts = hookpoint.split(".")
        for depth in range(1, len(parts)):
            name = ".".join(parts[:depth])
            if isinstance(model.base_model.get_submodule(name), nn.ModuleList):
                lists.add(name)
                first.append(int(parts[depth]))
                break
        else:
            return []
    if len(lists) != 1:
        return []
    blocks: Any = model.base_model.get_submodule(lists.pop())
    return list(blocks)[: min(first)]


@contextmanager
def giving(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside, blocks compute nothing and give `output`, so that a forward begins behind them."""
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = lambda *args, **options: output
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
