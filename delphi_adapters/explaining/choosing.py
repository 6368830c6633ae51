"""Which latents are looked at."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.evaluation.filter import FilterRecord

FURTHEST = 20
"""Latents to look at where none is exclusive."""

FINDINGS = 20
"""Listed differences whose latents are looked at, exclusive or not."""

OF_FILTER = ("listed", "kept")
"""What can be asked for only where the filter was asked."""


def chosen_latents(
    asked: Sequence[str], crosscoder: Crosscoder, filtered: Callable[[], FilterRecord]
) -> list[int]:
    """The latents that are asked for: "listed", "exclusive", "kept", "all" or numbers; in order.

    Listed are the exclusive ones and those of the first findings in the list of differences.
    `filtered` gives what the filter says. Where none is exclusive, as in many a standard
    crosscoder, those are chosen that lean furthest. Raises ValueError where there is none, or one
    that the crosscoder does not have.
    """
    asked = list(asked)
    if asked in (["exclusive"], ["listed"]):
        chosen = torch.cat(called_exclusive(crosscoder)).unique().tolist() or furthest(crosscoder)
        if asked == ["listed"]:
            found = [row["latent"] for row in filtered().findings[:FINDINGS]]
            chosen = sorted({*chosen, *(latent for latent in found if latent is not None)})
    elif asked == ["kept"]:
        chosen = sorted(latent for latent, score in filtered().scores.items() if score > 0)
    elif asked == ["all"]:
        chosen = list(range(crosscoder.num_latents))
    elif all(one.isdecimal() for one in asked):
        chosen = sorted({int(one) for one in asked})
        if chosen[-1] >= crosscoder.num_latents:
            last = crosscoder.num_latents - 1
            raise ValueError(f"There are latents 0..{last}, not {chosen[-1]}.")
    else:
        raise ValueError("--latents takes numbers, 'listed', 'exclusive', 'kept' or 'all'.")
    if not chosen:
        raise ValueError(
            f"No latent of this crosscoder is {asked[0]}: name some with --latents, or give "
            "--latents all."
        )
    return chosen


def none_is_exclusive(crosscoder: Crosscoder) -> bool:
    """Whether equation 12 calls no latent exclusive."""
    return not len(torch.cat(called_exclusive(crosscoder)))


def furthest(crosscoder: Crosscoder) -> list[int]:
    """The latents whose decoders lean furthest towards one model (equation 1), in order."""
    lean = (crosscoder.relative_decoder_norm() - 0.5).abs()
    return lean.topk(min(FURTHEST, len(lean))).indices.sort().values.tolist()


def limited(
    latents: Sequence[int], limit: int, listed: Mapping[int, float], seed: int
) -> list[int]:
    """Those of the largest listed differences first, then others at random; in order.

    At most `limit` of them. `listed` gives the score of the difference that a latent is in.
    """
    if len(latents) <= limit:
        return list(latents)
    order = random.Random(f"explain {seed}")
    drawn = order.sample(list(latents), len(latents))
    drawn.sort(key=lambda latent: -listed.get(latent, 0.0))
    return sorted(drawn[:limit])
