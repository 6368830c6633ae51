"""Squared lengths and standard errors from sums over separate folds of the pairs.

The length of one estimate grows with its error, and a rare latent would always seem to have an
effect. Products of the estimates of two folds do not: their errors are independent. Leaving out one
fold after the other tells how far what follows from them can be trusted.

K folds, L latents. What was estimated from all folds and without each is `[1 + K, L]`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_lengths(parts: Tensor, sizes: Tensor) -> Tensor:
    """Squared lengths of mean vectors known as sums over folds, unbiased, `[1 + K, L]`.

    `parts` [K, L, D] are sums over each fold's pairs, of which it has `sizes` [K]. The result may
    be negative; it is 0 where there are fewer than two folds.
    """
    vectors = parts.transpose(0, 1)
    return of_products(vectors @ vectors.mT, sizes)


def of_products(products: Tensor, sizes: Tensor) -> Tensor:
    """The same from the products of all folds' sums with each other, `[L, K, K]`."""
    products, sizes = products.double(), sizes.double()
    apart = products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)
    pairs = sizes.sum().square() - sizes.square().sum()
    # Without fold k its row and its column are missing.
    rows = products.sum(2) + products.sum(1) - 2 * products.diagonal(dim1=1, dim2=2)
    of_fold = 2 * sizes * (sizes.sum() - sizes)
    totals = torch.cat([apart[None], apart - rows.T])
    counts = torch.cat([pairs[None], pairs - of_fold])
    return totals / counts.clamp_min(1.0)[:, None]


def standard_error(values: Tensor) -> Tensor:
    """Jackknife error of what all folds say, from what they say without each, `[L]`."""
    without = values[1:]
    spread = (without - without.mean(0)).square().sum(0)
    return (spread * (len(without) - 1) / max(len(without), 1)).sqrt()
