"""Generating pairs of activations from concepts that are known (sections 2.3, B.2.1 and B.2.2).

n concepts, S sources, d width of a source, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...crosscoders.kernels import segment_sums


@dataclass
class ToyConfig:
    """Parameters of the toy model; the defaults are those of Table 6.

    What the paper leaves open is an option: the reading that its text or its tables favour is the
    default. The last fields make the toy harder than the paper's.
    """

    num_concepts: int = 2048
    """Number of concepts."""

    width: int = 256
    """Width of every source's activations."""

    num_sources: int = 2
    """Number of models. The first has the concepts as drawn, each other one a map of them."""

    exclusive_ratio: float = 0.05
    """Share of the concepts that belong to one source alone, over all sources."""

    mean_active: float | None = None
    """Concepts active per pair. If None, a hundredth of them (Table 6; the text says 5)."""

    correlation_rank: int = 10
    """Rank of what correlates the concepts' log-probabilities (equation 6)."""

    loading_spread: Literal["variance", "deviation"] = "variance"
    """Whether 0.5 / sqrt(rank) is the variance or the standard deviation of equation 6's L."""

    decay: float = 0.001
    """Rate at which frequencies fall over a random order of the concepts (equation 8)."""

    min_probability: float = 1e-4
    """Smallest probability of a concept (equation 9)."""

    map_spread: Literal["variance", "deviation"] = "variance"
    """Whether 0.25 is the variance or the standard deviation of equation 4's A."""

    translation: float = 0.1
    """Standard deviation of equation 4's b."""

    noise: float = 0.01
    """Standard deviation of the noise in every dimension."""

    empty: Literal["most_probable", "restart", "keep"] = "most_probable"
    """What becomes of a pair without an active concept: it gets the most probable one, is drawn
    again, or stays empty. Algorithm 2 as printed restarts the pairs that have one, and never ends.
    """

    amplitude_jitter: float = 0.0
    """Every source scales every activation by a factor of its own, uniform in 1 +- this."""

    drop: float = 0.0
    """Share of the activations of a concept that a source misses."""

    nonlinearity: float = 0.0
    """Size of a fixed non-linear function of its activation that every source but the first adds,
    as a multiple of the activation's own root mean square."""

    def __post_init__(self):
        if self.num_sources < 2 or self.num_concepts < self.num_sources or self.width < 1:
            raise ValueError(
                f"A toy model needs two sources, a concept for each and a positive width; got "
                f"{self.num_sources}, {self.num_concepts} and {self.width}."
            )
        for name in ("exclusive_ratio", "drop", "amplitude_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.mean_active is not None and self.mean_active <= 0:
            raise ValueError(f"mean_active must be positive, got {self.mean_active}.")

    @property
    def concepts_per_pair(self) -> float:
        """`mean_active`, or its default for this many concepts."""
        return self.mean_active if self.mean_active is not None else self.num_concepts / 100

    @property
    def exclusives_per_source(self) -> int:
        """Concepts that each source has for itself."""
        return round(self.num_concepts * self.exclusive_ratio / self.num_sources)


HARDER = {"amplitude_jitter": 0.5, "drop": 0.1}
"""Changes to a ToyConfig that make the sources disagree about shared concepts."""

NONLINEAR = {**HARDER, "nonlinearity": 0.5}
"""Changes to a ToyConfig with which no linear map leads from one source to the other."""


class ToyModel:
    """Concepts of a toy model and the pairs that they make, fixed by `cfg` and `seed`.

    Concepts are ordered: those of source 0 alone, of source 1 alone, ..., then the shared ones.

    Attributes:
        concepts: direction of every concept in each source, one `[n, d]` per source. A source's
            rows for concepts of another one alone are 0.
        probabilities: `[n]`, how likely a concept is in a pair.
    """

    def __init__(self, cfg: ToyConfig, seed: int = 0, device: str | torch.device = "cpu"):
        self.cfg, self.seed, self.device = cfg, seed, torch.device(device)
        # Drawn on the CPU, so that a seed is one toy model on every device.
        generator = torch.Generator().manual_seed(seed)
        self.probabilities = _probabilities(cfg, generator).to(device)
        first = F.normalize(torch.randn(cfg.num_concepts, cfg.width, generator=generator), dim=1)
        maps = [first, *(_mapped(first, cfg, generator) for _ in range(1, cfg.num_sources))]
        self.concepts: list[Tensor] = []
        for s, concepts in enumerate(maps):
            visible = torch.zeros(cfg.num_concepts, dtype=torch.bool)
            visible[self.shared.start :] = True
            visible[self.exclusive(s).start : self.exclusive(s).stop] = True
            self.concepts.append((concepts * visible[:, None]).to(device))
        self._bends = [
            [
                torch.randn(cfg.width, cfg.width, generator=generator).to(device) / cfg.width**0.5
                for _ in range(2)
            ]
            for _ in range(1, cfg.num_sources)
        ]
        self._bend_sizes: list[Tensor] | None = None

    def exclusive(self, source: int) -> range:
        """Concepts of one source alone."""
        if not 0 <= source < self.cfg.num_sources:
            raise IndexError(f"There are sources 0..{self.cfg.num_sources - 1}, not {source}.")
        size = self.cfg.exclusives_per_source
        return range(source * size, (source + 1) * size)

    @property
    def shared(self) -> range:
        """Concepts of all sources."""
        return range(self.cfg.num_sources * self.cfg.exclusives_per_source, self.cfg.num_concepts)

    def sample(self, num_pairs: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Draw pairs (Algorithm 2): activations, one `[N, d]` per source, and strengths `[N, n]`.

        A concept's strength is that of the pair, 0 where it is not active. `generator` must be on
        the toy model's device.
        """
        active = self._active(num_pairs, generator)
        rows, concepts = active.nonzero(as_tuple=True)
        values = torch.rand(len(rows), generator=generator, device=self.device)
        strengths = torch.zeros(active.shape, device=self.device)
        strengths[rows, concepts] = values
        counts = active.sum(1)
        starts = counts.cumsum(0) - counts
        activations = []
        for s in range(self.cfg.num_sources):
            seen = self._seen_by(values, generator)
            x = segment_sums(self.concepts[s], concepts, starts, seen)
            if self.cfg.nonlinearity and s:
                x = x + self._bend(s, x)
            noise = torch.randn(x.shape, generator=generator, device=self.device)
            activations.append(x + self.cfg.noise * noise)
        return activations, strengths

    def _active(self, num_pairs: int, generator: torch.Generator) -> Tensor:
        def draw(count: int) -> Tensor:
            shape = (count, self.cfg.num_concepts)
            uniform = torch.rand(shape, generator=generator, device=self.device)
            return uniform < self.probabilities

        active = draw(num_pairs)
        empty = (~active.any(1)).nonzero()[:, 0]
        if self.cfg.empty == "most_probable":
            active[empty, self.probabilities.argmax()] = True
        while self.cfg.empty == "restart" and len(empty):
            active[empty] = draw(len(empty))
            empty = empty[~active[empty].any(1)]
        return active

    def _seen_by(self, strengths: Tensor, generator: torch.Generator) -> Tensor:
        """What one source makes of the strengths of active concepts, `[E]`."""
        cfg = self.cfg
        if not cfg.amplitude_jitter and not cfg.drop:
            return strengths
        luck, size = torch.rand(2, len(strengths), generator=generator, device=self.device)
        return strengths * (1 + cfg.amplitude_jitter * (2 * size - 1)) * (luck >= cfg.drop)

    def _bend(self, source: int, x: Tensor) -> Tensor:
        if self._bend_sizes is None:
            self._bend_sizes = self._measure_bends()
        inner, outer = self._bends[source - 1]
        return (x @ inner).relu() @ outer * self._bend_sizes[source - 1]

    def _measure_bends(self) -> list[Tensor]:
        """What brings every source's non-linear part to its size, from pairs of their own."""
        sizes = []
        generator = torch.Generator(self.device).manual_seed(self.seed)
        active = self._active(4096, generator)
        strengths = torch.rand(active.shape, generator=generator, device=self.device) * active
        for s, (inner, outer) in enumerate(self._bends, start=1):
            x = strengths @ self.concepts[s]
            bend = (x @ inner).relu() @ outer
            sizes.append(self.cfg.nonlinearity * x.norm() / bend.norm())
        return sizes


def _probabilities(cfg: ToyConfig, generator: torch.Generator) -> Tensor:
    """How likely each concept is (equations 6 to 9), at most 1, `[n]`."""
    n, rank = cfg.num_concepts, cfg.correlation_rank
    spread = 0.5 / rank**0.5
    if cfg.loading_spread == "variance":
        spread **= 0.5
    loadings = spread * torch.randn(n, rank, generator=generator)
    # The same as drawing from N(0, L L^T + I).
    logits = loadings @ torch.randn(rank, generator=generator)
    logits += torch.randn(n, generator=generator)
    order = torch.randperm(n, generator=generator)
    p = logits.sigmoid() * torch.exp(-cfg.decay * order)
    p = p * cfg.concepts_per_pair / p.sum()
    return p.clamp(cfg.min_probability, 1)


def _mapped(concepts: Tensor, cfg: ToyConfig, generator: torch.Generator) -> Tensor:
    """Another source's directions for the same concepts (equations 4 and 5), `[n, d]`."""
    spread = 0.25 if cfg.map_spread == "deviation" else 0.25**0.5
    linear = spread * torch.randn(cfg.width, cfg.width, generator=generator)
    offset = cfg.translation * torch.randn(cfg.width, generator=generator)
    mapped = concepts @ linear.T + offset
    return mapped * (concepts.norm(dim=1).median() / mapped.norm(dim=1).median())
