"""Sparse codes: the active latents of some pairs.

N pairs, M latents, E active entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import kernels


@dataclass(frozen=True)
class SparseCode:
    """Active latents of N pairs, entries sorted by pair (CSR and COO at once).

    `acts` [E] activations; `indices` [E] latent of each entry; `rows` [E] pair of each entry;
    `shape` is (N, M).
    """

    acts: Tensor
    indices: Tensor
    rows: Tensor
    shape: tuple[int, int]

    @cached_property
    def counts(self) -> Tensor:
        """Active latents of each pair, `[N]`."""
        return torch.bincount(self.rows, minlength=self.shape[0])

    @cached_property
    def offsets(self) -> Tensor:
        """Where each pair's entries begin, `[N]`."""
        return kernels.starts_of(self.rows, self.shape[0])

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """The order that sorts the entries by latent `[E]`, and where each latent begins `[M]`."""
        return kernels.order_by(self.indices, self.shape[1])

    def with_acts(self, acts: Tensor) -> SparseCode:
        """The same entries with other activations."""
        code = SparseCode(acts, self.indices, self.rows, self.shape)
        for name in ("counts", "offsets", "by_latent"):
            if name in self.__dict__:
                code.__dict__[name] = self.__dict__[name]
        return code

    def first(self, num_pairs: int, num_entries: int) -> SparseCode:
        """The code of the first pairs alone, which have the first `num_entries` entries."""
        if num_pairs == self.shape[0]:
            return self
        acts, indices, rows = (p[:num_entries] for p in (self.acts, self.indices, self.rows))
        return SparseCode(acts, indices, rows, (num_pairs, self.shape[1]))

    def to_dense(self) -> Tensor:
        """The code as a dense `[N, M]` tensor."""
        dense = self.acts.new_zeros(self.shape)
        return dense.index_put_((self.rows, self.indices), self.acts)

    def padded(self) -> tuple[Tensor, Tensor]:
        """`(top_acts, top_indices)`, each `[N, width of the widest row]`.

        Padding is an activation of 0 at a latent that the row does not have, so that scattering it
        into a dense tensor, as delphi does, overwrites nothing.
        """
        width = max(int(self.counts.max()), 1) if len(self.counts) else 1
        column = torch.arange(len(self.rows), device=self.rows.device) - self.offsets[self.rows]
        acts = self.acts.new_zeros(self.shape[0], width).index_put((self.rows, column), self.acts)
        indices = self.indices.new_full((self.shape[0], width), self.shape[1])
        indices[self.rows, column] = self.indices
        places = torch.arange(width, device=indices.device)
        unused = (indices.sort(1).values == places).long().cumprod(1).sum(1, keepdim=True)
        return acts, torch.where(indices == self.shape[1], unused, indices)


def concatenate_columns(codes: list[SparseCode], starts: list[int], num_latents: int) -> SparseCode:
    """Join codes over disjoint column ranges that begin at `starts` into one over all latents."""
    if len(codes) == 1 and starts == [0] and codes[0].shape[1] == num_latents:
        return codes[0]
    rows = torch.cat([code.rows for code in codes])
    order, _ = kernels.order_by(rows, codes[0].shape[0])
    acts = torch.cat([code.acts for code in codes])
    indices = torch.cat([c.indices + s for c, s in zip(codes, starts, strict=True)])
    acts, indices, rows = (part.index_select(0, order) for part in (acts, indices, rows))
    return SparseCode(acts, indices, rows, (codes[0].shape[0], num_latents))
