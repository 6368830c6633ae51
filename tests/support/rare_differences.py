"""Activations of which a few pairs stand out in known directions."""

import torch


def with_rare_differences(count, size, pairs=3_000, width=40, share=0.01):
    """White pairs, and directions along each of which a share lies `size` deviations out."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(pairs, width, generator=generator)
    mixed = torch.randn(width, count, generator=generator)
    directions = torch.linalg.qr(mixed).Q.T
    for direction in directions:
        rare = torch.rand(pairs, 1, generator=generator) < share
        x += size * rare * direction
    return x - x.mean(0), directions
