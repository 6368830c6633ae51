"""dictionary_learning's `JumpReluAutoEncoder`: `ae.pt`, a state dict, and `config.json`.

The state dict has `W_enc` [D, M], `b_enc` [M], `W_dec` [M, D], `b_dec` [D] and `threshold` [M] in
float32. Pre-activations are `x @ W_enc + b_enc`, active where they exceed the threshold: `b_dec` is
not subtracted first.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..crosscoders import Crosscoder
from ..crosscoders.half import thresholded_half
from ..files import atomic_write_json
from .origin import Origin


def write(crosscoder: Crosscoder, source: int, origin: Origin, folder: Path) -> None:
    """Write `ae.pt` and `config.json`; raises UsageError without thresholds."""
    half, threshold = thresholded_half(crosscoder, source)
    state = {
        "W_enc": half.weight.T,
        "b_enc": half.bias - half.weight @ half.centre,
        "W_dec": half.decoder,
        "b_dec": half.centre,
        "threshold": threshold,
    }
    # Clones, or the file would have the whole of what they are views of.
    torch.save(
        {name: weight.float().contiguous().clone() for name, weight in state.items()},
        folder / "ae.pt",
    )
    num_latents, d_in = half.weight.shape
    atomic_write_json(
        folder / "config.json",
        {
            "trainer": {
                "dict_class": "JumpReluAutoEncoder",
                "activation_dim": d_in,
                "dict_size": num_latents,
                "layer": origin.layer,
                "lm_name": origin.model,
                "submodule_name": origin.hookpoint,
            },
            "buffer": {"ctx_len": origin.ctx_len},
        },
    )
