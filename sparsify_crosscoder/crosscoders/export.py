"""One source's half of a crosscoder as a folder of plain sparsify."""

from __future__ import annotations

from pathlib import Path

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import nn

from .half import half_of
from .parameters import CrosscoderParameters


@torch.no_grad()
def export_sae(crosscoder: CrosscoderParameters, source: int, path: Path) -> SparseCoder:
    half = half_of(crosscoder, source)
    cfg = SparseCoderConfig(
        num_latents=crosscoder.num_latents, k=crosscoder.cfg.k, normalize_decoder=False
    )
    sae = SparseCoder(
        crosscoder.d_sources[source], cfg, device=crosscoder.device, dtype=crosscoder.dtype
    )
    sae.encoder.weight.copy_(half.weight)
    sae.encoder.bias.copy_(half.bias)
    assert isinstance(sae.W_dec, nn.Parameter)
    sae.W_dec.copy_(half.decoder)
    sae.b_dec.copy_(half.centre)
    sae.save_to_disk(path)
    return sae
