"""How well a crosscoder reconstructs (B.4.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..scorability import ENOUGH_FIRINGS, FILTER_PAIRS
from ..store.normalization import within_norm
from ..store.stream import ActivationStream, every_pair
from ..world import ALONE, World

EVALUATION_BATCH = 1024


class ErrorStatistics:
    """Per-dimension squared errors and variances of many batches, mergeable (Chan et al. 1979).

    D is the width; all sums are kept in float64 on the CPU.
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.deviations = torch.zeros(width, dtype=torch.float64)
        self.errors = torch.zeros(width, dtype=torch.float64)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add activations and their reconstructions, each `[n, D]`."""
        x, x_hat = x.cpu().double(), x_hat.cpu().double()
        if not len(x):
            return
        other = ErrorStatistics(x.shape[1])
        other.count = len(x)
        other.mean = x.mean(0)
        other.deviations = (x - other.mean).pow(2).sum(0)
        other.errors = (x - x_hat).pow(2).sum(0)
        self.merge(other)

    def merge(self, other: ErrorStatistics) -> None:
        """Add another set of batches."""
        total = self.count + other.count
        if not total:
            return
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / total)
        self.deviations = (
            self.deviations + other.deviations + shift.pow(2) * (self.count * other.count / total)
        )
        self.errors = self.errors + other.errors
        self.count = total

    def to_tensor(self) -> Tensor:
        return torch.cat(
            [self.mean, self.deviations, self.errors, self.mean.new_tensor([float(self.count)])]
        )

    @classmethod
    def from_tensor(cls, packed: Tensor) -> ErrorStatistics:
        statistics = cls((len(packed) - 1) // 3)
        statistics.mean, statistics.deviations, statistics.errors = packed[:-1].chunk(3)
        statistics.count = int(packed[-1])
        return statistics


def fve(statistics: list[ErrorStatistics], without_top: int = 0) -> float:
    """Fraction of variance explained, pooled over all dimensions of the given sources.

    1 - sum of squared errors / sum of squared deviations; `without_top` leaves out that many
    dimensions of each source with the largest variance.
    """
    errors = deviations = 0.0
    for one in statistics:
        kept = one.deviations.argsort(descending=True)[without_top:]
        errors += one.errors[kept].sum().item()
        deviations += one.deviations[kept].sum().item()
    return 1 - errors / deviations if deviations else float("nan")


@torch.no_grad()
def evaluate(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    outlier_multiple: float = 2.0,
    *,
    world: World = ALONE,
) -> dict[str, Any]:
    """Reconstruction of every pair of `stream` at inference (learned thresholds).

    Returns `fve` on normalised activations of all sources together, `fve_per_source`,
    `fve_without_top5_per_source`, `mean_l0`, `l0_per_block` (active latents of each block per
    pair), `held_out_pairs` and `held_out_outliers`, the pairs left out as in training (B.1.4).
    `fve_with_outliers` and `fve_per_source_with_outliers` are measured on all pairs,
    `held_out_outlier_share` is the share of them that all else leaves out. Of each source's
    exclusive block, `exclusive_judgeable` counts the latents that fire as often as `filter` needs
    to judge them (on 200 of its 131,072 pairs), None without such a block.
    """
    was_training = crosscoder.training
    crosscoder.eval()
    statistics, everything = (
        [ErrorStatistics(d) for d in crosscoder.d_sources] for _ in ("kept", "all")
    )
    blocks = crosscoder.partition.blocks
    fired = torch.zeros(crosscoder.num_latents, dtype=torch.long, device=crosscoder.device)
    for batch in every_pair(stream, EVALUATION_BATCH):
        batch = [x.to(crosscoder.device) for x in batch]
        keep = within_norm(batch, outlier_multiple, world, crosscoder.median_norms)
        raw = torch.cat([x.to(crosscoder.dtype) for x in batch], 1)
        code = crosscoder.encode_sparse(raw)
        x, x_hat = crosscoder.normalize(raw), crosscoder.normalize(crosscoder.decode_sparse(code))
        kept_entries = code.indices[keep[code.rows]]
        fired += torch.bincount(kept_entries, minlength=crosscoder.num_latents)
        for s, columns in enumerate(crosscoder.columns):
            statistics[s].update(x[keep, columns], x_hat[keep, columns])
            everything[s].update(x[:, columns], x_hat[:, columns])
    crosscoder.train(was_training)

    merged, merged_all = (_over_ranks(of, crosscoder, world) for of in (statistics, everything))
    fired = world.sum(fired).cpu()
    exclusive = [crosscoder.partition.exclusive(s) for s in range(len(statistics))]
    often = fired * FILTER_PAIRS >= ENOUGH_FIRINGS * max(merged[0].count, 1)
    pairs, outliers = max(merged[0].count, 1), merged_all[0].count - merged[0].count
    return {
        "fve": fve(merged),
        "fve_per_source": [fve([one]) for one in merged],
        "fve_without_top5_per_source": [fve([one], without_top=5) for one in merged],
        "fve_with_outliers": fve(merged_all),
        "fve_per_source_with_outliers": [fve([one]) for one in merged_all],
        "mean_l0": int(fired.sum()) / pairs,
        "l0_per_block": {b.name: int(fired[b.start : b.stop].sum()) / pairs for b in blocks},
        "held_out_pairs": merged[0].count,
        "exclusive_judgeable": [
            int(often[b.start : b.stop].sum()) if len(b) else None for b in exclusive
        ],
        "held_out_outliers": outliers,
        "held_out_outlier_share": outliers / max(merged_all[0].count, 1),
    }


def _over_ranks(
    statistics: list[ErrorStatistics], crosscoder: Crosscoder, world: World
) -> list[ErrorStatistics]:
    """The statistics of every source over the pairs of all ranks."""
    merged = []
    for one in statistics:
        packed = one.to_tensor().to(crosscoder.device)
        ranks = [ErrorStatistics.from_tensor(p.cpu()) for p in world.gather(packed[None])]
        for other in ranks[1:]:
            ranks[0].merge(other)
        merged.append(ranks[0])
    return merged
