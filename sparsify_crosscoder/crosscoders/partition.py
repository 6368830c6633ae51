"""Which latents may read and write which sources, and which compete with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Consecutive latents that read and write the same sources."""

    name: str
    start: int
    stop: int
    sources: tuple[int, ...]
    tied: bool = False
    """One decoder vector serves all the sources of the block (B.3)."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Consecutive blocks whose latents compete for one BatchTopK budget."""

    blocks: tuple[int, ...]
    share: float
    """Budget as a multiple of k: the group selects round(share * k * N) entries of N pairs."""


@dataclass(frozen=True)
class Partition:
    """Blocks that cover the latents 0..M-1 without overlap, and the groups they compete in.

    Raises ValueError if the blocks leave a hole or overlap, if a group's blocks are not
    neighbours, or if a block is in no group or in two.
    """

    num_sources: int
    blocks: tuple[Block, ...]
    groups: tuple[Group, ...]

    def __post_init__(self):
        position = 0
        for block in self.blocks:
            if block.start != position or block.stop < block.start:
                raise ValueError(
                    f"Block '{block.name}' covers latents {block.start}..{block.stop}, "
                    f"but the next free latent is {position}."
                )
            if not block.sources or not set(block.sources) <= set(range(self.num_sources)):
                raise ValueError(f"Block '{block.name}' names unknown sources {block.sources}.")
            if tuple(range(block.sources[0], block.sources[-1] + 1)) != block.sources:
                raise ValueError(
                    f"Block '{block.name}' must read neighbouring sources, got {block.sources}."
                )
            position = block.stop
        if [b for group in self.groups for b in group.blocks] != list(range(len(self.blocks))):
            raise ValueError("Every block must be in exactly one group, in order.")

    @classmethod
    def build(
        cls,
        num_sources: int,
        blocks: Sequence[tuple[str, int, tuple[int, ...]]],
        shares: Sequence[float] | None = None,
        tied: Sequence[str] = (),
    ) -> Partition:
        """Lay out `(name, size, sources)` blocks one behind the other.

        `shares` gives each block a group of its own with that share of k; without it all blocks
        compete for one budget of k. Blocks of size 0 are left out.
        """
        laid: list[Block] = []
        kept_shares: list[float] = []
        position = 0
        for i, (name, size, sources) in enumerate(blocks):
            if size == 0:
                continue
            laid.append(Block(name, position, position + size, tuple(sources), name in tied))
            kept_shares.append(shares[i] if shares else 1.0)
            position += size
        if shares:
            groups = tuple(Group((i,), share) for i, share in enumerate(kept_shares))
        else:
            groups = (Group(tuple(range(len(laid))), 1.0),)
        return cls(num_sources, tuple(laid), groups)

    @property
    def num_latents(self) -> int:
        """Latents of all blocks."""
        return self.blocks[-1].stop

    @property
    def sizes(self) -> dict[str, int]:
        """Number of latents in each block, by its name."""
        return {block.name: len(block) for block in self.blocks}

    def exclusive(self, source: int) -> range:
        """Latents that read and write `source` alone; empty if there is no such block."""
        if not 0 <= source < self.num_sources:
            raise IndexError(f"There are sources 0..{self.num_sources - 1}, not {source}.")
        for block in self.blocks:
            if block.sources == (source,):
                return range(block.start, block.stop)
        return range(0)

    @property
    def shared(self) -> range:
        """Latents that read and write every source."""
        blocks = [b for b in self.blocks if len(b.sources) == self.num_sources]
        return range(blocks[0].start, blocks[-1].stop) if blocks else range(0)

    def group_slice(self, group: Group) -> slice:
        """The columns of a group in a `[N, M]` matrix."""
        return slice(self.blocks[group.blocks[0]].start, self.blocks[group.blocks[-1]].stop)
