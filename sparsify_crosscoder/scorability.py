"""Why latents cannot be judged, and what would let them be.

A latent that fires on few pairs says too little of itself. How often it fires on the pairs that
were read, and how uncertain that leaves what is measured, tells how many pairs would be enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

LEAST_FIRINGS = 10
"""Pairs on which a latent must fire to be judged, however clear all else is."""

ENOUGH_FIRINGS = 32
"""Pairs on which a latent has to fire for most to be judged, as examples/benchmarks/scorability.py
measures it."""

FILTER_PAIRS = 131_072
"""Pairs that `filter` reads at first."""

MOST_PAIRS = 8 * FILTER_PAIRS
"""Pairs that it reads at most, where it is not told how many."""

MIN_OWN = 0.05
"""Least R2 of a latent's activation from its own source."""

LITTLE = 0.7
"""Share of a source's variance from which what the others do not tell is nearly all; of pairs in
random order it is 1. Our own judgement."""

MOST = 0.9  # share of the latents that what is advised lets be judged


class Evidence(NamedTuple):
    """What there is of a latent that cannot be judged yet."""

    firings: int
    """Pairs on which it fires."""

    needed: int
    """Pairs on which it would have to."""


def pairs_needed(firings: int, pairs: int, needed: int) -> int | None:
    """Pairs on which a latent that fires as often would fire `needed` times; None if never."""
    return -(-needed * pairs // firings) if firings and needed else None


def too_little(evidence: Evidence, pairs: int) -> str:
    """Why one latent is not scorable."""
    said = f"it fires on {evidence.firings:,} of the {pairs:,} pairs read"
    needed = pairs_needed(evidence.firings, pairs, evidence.needed)
    if needed is None:
        return f"{said}, and {evidence.needed:,} are needed"
    return f"{said}; some {_rounded(evidence.needed):,} suffice, which takes {_rounded(needed):,}"


def rarity(
    evidence: Sequence[Evidence], pairs: int, available: int | None = None
) -> dict[str, Any]:
    """Of latents that cannot be judged yet, how many never fire, and what would be enough.

    `pairs_for_most` pairs let nine in ten of those that fire at all be judged, all but `left_then`;
    half of them need `firings_needed` firings or fewer. `available` are the pairs that there are.
    """
    firing = [one for one in evidence if one.firings]
    found: dict[str, Any] = {
        "unjudged": len(evidence),
        "silent": len(evidence) - len(firing),
        "pairs": pairs,
        "pairs_available": available,
    }
    if firing:
        pairs_of = sorted(-(-one.needed * pairs // one.firings) for one in firing)
        enough = pairs_of[math.ceil(MOST * len(firing)) - 1]
        needed = sorted(one.needed for one in firing)
        found |= {
            "pairs_for_most": enough,
            "firings_needed": needed[(len(needed) - 1) // 2],
            "left_then": len(evidence) - sum(one <= enough for one in pairs_of),
        }
    return found


def rarity_line(found: dict[str, Any]) -> str:
    """What `rarity` found, as a sentence with the option that would help."""
    line = f"{found['unjudged']:,} fire too rarely on the {found['pairs']:,} pairs read"
    if found["silent"]:
        line += f" ({found['silent']:,} of them on none)"
    if "pairs_for_most" not in found:
        return f"{line}; more pairs may tell whether they ever fire"
    line += f"; some {_rounded(found['firings_needed']):,} firings suffice for half of them"
    left = f"all but {found['left_then']:,}" if found["left_then"] else "all"
    more, available = _rounded(found["pairs_for_most"]), found["pairs_available"]
    if available is not None and more > available:
        return (
            f"{line}, and some {more:,} pairs for {left}, of which there are {available:,}: "
            "harvest more"
        )
    return f"{line}, and --pairs {more} for {left}"


def with_interval(score: float, error: float | None) -> str:
    """A score with half the width of its 95% interval, where its standard error is known."""
    return f"{score:.2f}" + ("" if error is None else f" ± {1.96 * error:.2f}")


def _rounded(count: int) -> int:
    """A count with two digits that tell, not less than it is."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // unit) * unit
