"""Why latents cannot be judged, and what would let them be.

A latent that fires on few pairs says too little of itself. How often it fires on the pairs that
were read tells how many pairs would be enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MIN_FIRINGS = 200
"""Pairs on which a latent must fire to be judged."""

FILTER_PAIRS = 131_072
"""Pairs that `filter` reads."""

MIN_OWN = 0.05
"""Least R2 of a latent's activation from its own source."""

MOST = 0.9  # share of the rare latents that what is advised lets be judged


def pairs_needed(firings: int, pairs: int, min_firings: int) -> int | None:
    """Pairs on which a latent that fires as often would fire `min_firings` times; None if never."""
    return -(-min_firings * pairs // firings) if firings else None


def too_rare(firings: int, pairs: int, min_firings: int) -> str:
    """Why one latent is not scorable."""
    said = f"it fires on {firings:,} of the {pairs:,} pairs read, and {min_firings:,} are needed"
    needed = pairs_needed(firings, pairs, min_firings)
    return said + ("" if needed is None else f": some {needed:,} pairs would have them")


def rarity(
    firings: Sequence[int], pairs: int, min_firings: int, available: int | None = None
) -> dict[str, Any]:
    """Of rare latents, how often each fires: how many never do, and what would be enough.

    `pairs_for_most` pairs, or a threshold of `min_firings_for_most`, let nine in ten of those that
    fire at all be judged, all but `left_then`. `available` are the pairs that there are to read.
    """
    firing = sorted((f for f in firings if f), reverse=True)
    found: dict[str, Any] = {
        "too_rare": len(firings),
        "silent": len(firings) - len(firing),
        "min_firings": min_firings,
        "pairs": pairs,
        "pairs_available": available,
    }
    if firing:
        least = firing[max(-(-int(MOST * 100) * len(firing) // 100), 1) - 1]
        found |= {
            "pairs_for_most": pairs_needed(least, pairs, min_firings),
            "min_firings_for_most": least,
            "left_then": len(firings) - sum(f >= least for f in firing),
        }
    return found


def rarity_line(found: dict[str, Any]) -> str:
    """What `rarity` found, as a sentence with the options that would help."""
    line = (
        f"{found['too_rare']:,} fire on fewer than {found['min_firings']:,} of the "
        f"{found['pairs']:,} pairs read"
    )
    if found["silent"]:
        line += f" ({found['silent']:,} of them on none)"
    if "pairs_for_most" not in found:
        return f"{line}; more pairs may tell whether they ever fire"
    left = f"all but {found['left_then']:,}" if found["left_then"] else "all"
    more, fewer = found["pairs_for_most"], f"--min_firings {found['min_firings_for_most']}"
    available = found["pairs_available"]
    if available is not None and more > available:
        return (
            f"{line}; {left} could be judged with some {more:,} pairs, of which there are "
            f"{available:,}, so harvest more, or with {fewer}, less surely"
        )
    return f"{line}; with --pairs {more} {left} could be judged, or with {fewer}, less surely"
