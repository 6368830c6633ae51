"""Carrying a vector from one model to another by the latents that both share (B.4.5).

M latents, D_a and D_b widths of the two sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..crosscoders import Crosscoder

Norm = Literal["normalised", "raw"]
NUM_LATENTS = 10  # B.4.5
SHARED_NORMS = (0.2, 0.8)  # 2.1: relative decoder norms between these are shared


@dataclass(frozen=True, eq=False)
class Transferred:
    """A vector in another model, and the latents that it was made of."""

    vector: Tensor
    """In the raw activations of the target, `[D_b]`."""

    latents: list[int]
    """The most aligned first."""

    cosines: list[float]
    """Of each latent's decoder in the source with the vector: its weight (equation 15)."""

    source: int
    target: int

    def rows(self, explanations: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """One dictionary per latent, in the form of Table 7."""
        explanations = explanations or {}
        total = sum(self.cosines)
        return [
            {
                "latent": latent,
                "cosine": cosine,
                "weight": cosine / total,
                "explanation": explanations.get(latent),
            }
            for latent, cosine in zip(self.latents, self.cosines, strict=True)
        ]

    def table(self, explanations: Mapping[int, str] | None = None) -> str:
        """The latents as aligned text, in the form of Table 7."""
        lines = [f"{'latent':>8}  {'cosine':>6}  {'weight':>6}  explanation"]
        for row in self.rows(explanations):
            lines.append(
                f"{row['latent']:>8}  {row['cosine']:>6.3f}  {row['weight']:>6.3f}  "
                f"{row['explanation'] or '(none)'}"
            )
        return "\n".join(lines)


def shared_latents(crosscoder: Crosscoder, source: int, target: int) -> Tensor:
    """Latents that read and write both sources, ascending.

    Where an architecture has exclusive blocks, all others; where it has none, those whose
    relative decoder norm says so (equation 1).
    """
    blocks = crosscoder.partition.blocks
    both = [block for block in blocks if {source, target} <= set(block.sources)]
    latents = torch.cat([torch.arange(block.start, block.stop) for block in both])
    if len(both) < len(blocks):
        return latents
    norms = crosscoder.decoder_norms().cpu()
    share = norms[:, source] / (norms[:, source] + norms[:, target])
    low, high = SHARED_NORMS
    return latents[(share[latents] >= low) & (share[latents] <= high)]


@torch.no_grad()
def transfer(
    crosscoder: Crosscoder,
    vector: Tensor,
    source: int = 0,
    target: int = 1,
    *,
    num_latents: int = NUM_LATENTS,
    norm: Norm = "normalised",
    candidates: Tensor | None = None,
) -> Transferred:
    """The target's counterpart of a raw vector `[D_a]` of the source (equations 13 to 17).

    The average of the target's decoders of the `num_latents` most aligned shared latents, weighted
    by their cosines. Its length is that of `vector`, by default as a multiple of each model's own
    activations (`norm="normalised"`), or as a plain number ("raw", equation 17 as printed), which
    means little where one model's activations are many times the other's. `candidates` are the
    latents to choose from, all shared ones by default. Raises ValueError for a vector of another
    width, and if fewer than `num_latents` candidates point the vector's way.
    """
    _check(crosscoder, vector, source, target)
    candidates = shared_latents(crosscoder, source, target) if candidates is None else candidates
    decoder = crosscoder.decoder(source)[candidates.to(crosscoder.device)].float().cpu()
    cosines = torch.nn.functional.cosine_similarity(decoder, vector.detach().float().cpu()[None])
    aligned = int((cosines > 0).sum())
    if not 1 <= num_latents <= aligned:
        raise ValueError(
            f"{num_latents} latents were asked for, but of {len(candidates)} shared ones only "
            f"{aligned} point the vector's way."
        )
    best, places = cosines.topk(num_latents)
    return combined(crosscoder, vector, candidates[places], best, source, target, norm=norm)


def random_transfers(
    crosscoder: Crosscoder,
    vector: Tensor,
    like: Transferred,
    draws: int,
    *,
    seed: int = 0,
    norm: Norm = "normalised",
    candidates: Tensor | None = None,
) -> list[Transferred]:
    """Controls of a transfer: as many random shared latents with the same weights, to the same
    length. The latents of `like` are not drawn."""
    if draws < 1:
        raise ValueError(f"At least one random draw is needed to compare with, got {draws}.")
    if candidates is None:
        candidates = shared_latents(crosscoder, like.source, like.target)
    candidates = candidates[~torch.isin(candidates, torch.tensor(like.latents))]
    if len(candidates) < len(like.latents):
        raise ValueError(
            f"There are {len(candidates)} other shared latents, too few to draw "
            f"{len(like.latents)} of them."
        )
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(like.cosines)
    found = []
    for _ in range(draws):
        drawn = torch.randperm(len(candidates), generator=generator)[: len(weights)]
        found.append(
            combined(
                crosscoder, vector, candidates[drawn], weights, like.source, like.target, norm=norm
            )
        )
    return found


@torch.no_grad()
def combined(
    crosscoder: Crosscoder,
    vector: Tensor,
    latents: Tensor,
    weights: Tensor,
    source: int,
    target: int,
    *,
    norm: Norm = "normalised",
) -> Transferred:
    """The weighted average of the target's decoders (equation 16), to the length of `vector`."""
    if norm not in ("normalised", "raw"):
        raise ValueError(f"Unknown norm {norm!r}: use normalised or raw.")
    decoder = crosscoder.decoder(target)[latents.to(crosscoder.device)].float().cpu()
    average = (weights[:, None] * decoder).sum(0) / weights.sum()
    if not average.any():
        raise ValueError("The chosen latents write nothing to the target.")
    length = vector.detach().float().norm().cpu()
    if norm == "normalised":
        factors = crosscoder.factors.float().cpu()
        length = length * factors[source] / factors[target]
    return Transferred(
        average * length / average.norm(), latents.tolist(), weights.tolist(), source, target
    )


def _check(crosscoder: Crosscoder, vector: Tensor, source: int, target: int) -> None:
    count = len(crosscoder.d_sources)
    if source == target or not (0 <= source < count and 0 <= target < count):
        raise ValueError(
            f"A transfer goes from one of the sources 0..{count - 1} to another, not from "
            f"{source} to {target}."
        )
    width = crosscoder.d_sources[source]
    if vector.shape != (width,):
        raise ValueError(
            f"The vector has shape {list(vector.shape)}, but source {source} has width {width}."
        )


def read_explanations(path: Path) -> dict[int, str]:
    """Explanations by latent from a `features.parquet`, as `python -m delphi_adapters explain`
    writes it; none where the file is missing. Raises ValueError for another file."""
    if not path.exists():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["latent", "explanation"])
    except pa.ArrowException as error:
        raise ValueError(f"'{path}' has no latents with explanations: {error}") from error
    rows = table.to_pylist()
    return {row["latent"]: row["explanation"] for row in rows if row["explanation"]}
