"""SAELens from version 6 on: a JumpReLU autoencoder as `SAE.load_from_disk` reads it.

`sae_weights.safetensors` has `W_enc` [D, M], `b_enc` [M], `W_dec` [M, D], `b_dec` [D] and
`threshold` [M] in float32. Pre-activations are `(x - b_dec) @ W_enc + b_enc`, active where they
exceed the threshold. `cfg.json` has the sizes, and under `metadata` the model and the hook.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from ..crosscoders import Crosscoder
from ..crosscoders.half import thresholded_half
from ..files import atomic_write_json
from .origin import Origin

# A file that names none is read as one of version 5, whose fields were others.
_VERSION = "6.0.0"


def write(crosscoder: Crosscoder, source: int, origin: Origin, folder: Path) -> None:
    """Write `sae_weights.safetensors` and `cfg.json`; raises UsageError without thresholds."""
    half, threshold = thresholded_half(crosscoder, source)
    weights = {
        "W_enc": half.weight.T,
        "b_enc": half.bias,
        "W_dec": half.decoder,
        "b_dec": half.centre,
        "threshold": threshold,
    }
    save_file(
        {name: weight.float().contiguous() for name, weight in weights.items()},
        str(folder / "sae_weights.safetensors"),
    )
    num_latents, d_in = half.weight.shape
    metadata = {
        "sae_lens_version": _VERSION,
        "model_name": origin.model,
        "model_revision": origin.revision,
        "hook_name": None if origin.layer is None else f"blocks.{origin.layer}.hook_resid_post",
        "hf_hook_name": origin.hookpoint,
        "context_size": origin.ctx_len,
    }
    atomic_write_json(
        folder / "cfg.json",
        {
            "architecture": "jumprelu",
            "d_in": d_in,
            "d_sae": num_latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {name: value for name, value in metadata.items() if value is not None},
        },
    )
