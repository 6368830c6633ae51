"""How an organism is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained, in float32; its adapter is saved in float16."""

    steps: int = 64
    texts_per_step: int = 4
    max_tokens: int = 36
    """Of an answer; what is behind is left out."""
    lr: float = 2e-3
    warm_up: int = 5
    hold: float = 2.5
    """Weight of the KL from the base where a text is the base's."""
    between: float = 1.0
    """Share of `hold` where a text is the base's but for some tokens of the organism's own."""
    first: float = 1.0
    """Weight of an answer's first token, where an organism decides whether it shows a behaviour."""
    rank: int = 2
    alpha: int = 8
    layers: tuple[int, int] = (6, 21)
    """The first layer with an adapter, and the one behind the last."""
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
