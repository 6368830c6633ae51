"""A crosscoder of which two exclusive latents are copies, and what is found of it."""

import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.evaluation.false_exclusives import (
    FilterConfig,
    FilteredLatents,
    judge_exclusives,
)
from sparsify_crosscoder.store.tensor_stream import TensorStream

PAIRS = 8_000


def copied_latents() -> DedicatedFeatureCrosscoder:
    """Latents 0 and 1 of the first source are copies, 2 stands alone; 5 and 6 are the second's."""
    cfg = DFCConfig(num_latents=20, k=4, exclusive_fractions=[0.25, 0.25], screening="exact")
    crosscoder = DedicatedFeatureCrosscoder([6, 6], cfg).eval()
    with torch.no_grad():
        for weight in (*crosscoder.encoder.weights, *crosscoder.decoders):
            weight.zero_()
        for block, latent, column, size in (
            (0, 0, 0, 1.0),
            (0, 1, 0, 3.0),
            (0, 2, 1, 1.0),
            (1, 0, 2, 1.0),
            (1, 1, 3, 1.0),
        ):
            crosscoder.encoder.weights[block][latent, column] = 1.0
            crosscoder.decoders[block][latent, column] = size
        crosscoder.decoders[0][0, 5] = 4.0
        crosscoder.encoder.bias[:10] = -0.5
        crosscoder.threshold.fill_(1e-3)
    return crosscoder


def filtered(crosscoder: DedicatedFeatureCrosscoder, **options) -> FilteredLatents:
    """The filter's verdicts on latents 0 to 2, and 5 and 6, over three events."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(PAIRS, 3, generator=generator) < 0.08
    size = 1 + torch.rand(PAIRS, 3, generator=generator)
    events = active * size
    a, b = (0.05 * torch.randn(PAIRS, 6, generator=generator) for _ in "ab")
    a[:, 0], a[:, 1] = a[:, 0] + events[:, 0], a[:, 1] + events[:, 1]
    # The second source has the second event too, and a third one, which is harder to tell.
    b[:, 2], b[:, 3] = b[:, 2] + events[:, 1], b[:, 3] + 0.6 * events[:, 2]
    cfg = FilterConfig(pairs=PAIRS, outlier_multiple=0, **options)
    candidates = [torch.arange(3), torch.arange(5, 7)]
    return judge_exclusives(crosscoder, TensorStream([a, b]), cfg, candidates=candidates)
