"""What goes into a forward pass beside activations, and what comes out of it.

N pairs, S sources, G groups, E active entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsify.sparse_coder import ForwardOutput
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from ..world import ALONE, World
from .codes import SparseCode


class Batch(NamedTuple):
    """The whole batch, of which a forward pass may see a part."""

    num_pairs: float | None = None
    """Pairs of the whole batch (each rank's share of them); None for those that are seen."""

    cuts: Tensor | None = None
    """`[G]` from `find_cuts`; None for those of the pairs that are seen."""

    world: World = ALONE
    """The ranks that share the batch."""


@dataclass(frozen=True)
class Selection:
    """What BatchTopK kept: one code per block, and the smallest score kept in each group `[G]`.

    Where dead latents were asked for, a code has the N pairs twice: first what is active in them,
    then the strongest dead latents. So both share one gradient of each matrix. `num_active` are
    the entries of each block's first part.
    """

    codes: list[SparseCode]
    cuts: Tensor
    num_active: list[int]

    def active(self, num_pairs: int) -> list[SparseCode]:
        """The codes without the dead latents."""
        return [
            code.first(num_pairs, n) for code, n in zip(self.codes, self.num_active, strict=True)
        ]


class Terms(NamedTuple):
    """What a code comes to: its reconstruction `[N, d_in]` without the bias, and the losses."""

    decoded: Tensor
    errors: Tensor
    """Sum of squared errors of each source, `[S]`."""

    fvu: Tensor
    loss: Tensor
    auxk: Tensor


class _OutputFields(NamedTuple):
    sae_out: Tensor
    latent_acts: Tensor
    latent_indices: Tensor
    fvu: Tensor
    auxk_loss: Tensor
    multi_topk_fvu: Tensor
    loss: Tensor
    code: SparseCode
    errors: Tensor
    cuts: Tensor


class CrosscoderOutput(_OutputFields, ForwardOutput):  # pyright: ignore[reportGeneralTypeIssues]
    """sparsify's ForwardOutput, with the loss to train on and the sparse code behind its fields.

    `sae_out` [N, d_in] is in the space of the input; `fvu` and `auxk_loss` are measured on
    normalised activations. `errors` [S] are the sums of squared errors of each source, `cuts` [G]
    the smallest score that each group kept. A named tuple of ten fields, all of which copies,
    `_replace` and torch's pytrees (so DDP) keep.
    """

    __slots__ = ()


def _code_from(parts: Iterable[Any], shape: Any) -> SparseCode:
    acts, indices, rows = parts
    return SparseCode(acts, indices, rows, shape)


register_pytree_node(
    SparseCode, lambda code: ([code.acts, code.indices, code.rows], code.shape), _code_from
)
# Older versions of torch take a named tuple of two bases for a leaf.
register_pytree_node(
    CrosscoderOutput, lambda out: (list(out), None), lambda parts, _: CrosscoderOutput(*parts)
)
