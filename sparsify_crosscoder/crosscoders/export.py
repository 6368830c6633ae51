"""One source's half of a crosscoder as a sparse autoencoder of that model alone."""

from __future__ import annotations

from pathlib import Path

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import nn

from .parameters import CrosscoderParameters


@torch.no_grad()
def export_sae(crosscoder: CrosscoderParameters, source: int, path: Path) -> SparseCoder:
    columns = crosscoder.columns[source]
    factor = crosscoder.factors[source].to(crosscoder.dtype)
    mean, b_dec = crosscoder.mean[columns].to(crosscoder.dtype), crosscoder.b_dec[columns]
    cfg = SparseCoderConfig(
        num_latents=crosscoder.num_latents, k=crosscoder.cfg.k, normalize_decoder=False
    )
    sae = SparseCoder(
        crosscoder.d_sources[source], cfg, device=crosscoder.device, dtype=crosscoder.dtype
    )
    weight = crosscoder.encoder_weight(source).clone()
    for block in crosscoder.partition.blocks:
        if source not in block.sources:
            weight[block.start : block.stop] = 0
    # sparsify subtracts b_dec before it encodes, a crosscoder does not: the bias makes it up.
    bias = crosscoder.encoder.bias + weight @ b_dec
    for block in crosscoder.partition.blocks:
        if source not in block.sources:
            bias[block.start : block.stop] = -1.0  # with no weights: never active
    sae.encoder.weight.copy_(weight * factor)
    sae.encoder.bias.copy_(bias)
    assert isinstance(sae.W_dec, nn.Parameter)
    sae.W_dec.copy_(crosscoder.decoder(source) / factor)
    sae.b_dec.copy_(b_dec / factor + mean)
    sae.save_to_disk(path)
    return sae
