"""The progress bar of a harvest that several processes share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ..world import current_world
from .shard_notes import note_of

_COST = "For this the models run to their ends, several times as long; --kl off leaves it out."


class HarvestProgress:
    """Pairs of all ranks: this one's as they come, the others' shard by shard."""

    def __init__(
        self,
        files: list[Path],
        rows: list[int],
        bytes_each: float,
        columns: Sequence[str] = (),
        *,
        disable: bool,
    ):
        self._files, self._rows, self._bytes_each = files, rows, bytes_each
        self._done: set[int] = set()
        self._disable = disable
        done = self._finished() if not disable else 0
        if columns and not disable and done < sum(rows):
            tqdm.write(f"Kept of every pair too: {', '.join(columns)}. {_COST}", file=sys.stderr)
        self._bar = tqdm(
            desc="Harvesting",
            unit=" pairs",
            unit_scale=True,
            total=sum(rows),
            initial=done,
            disable=disable,
        )

    def __enter__(self) -> HarvestProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, pairs: int) -> None:
        """Count pairs that all models have read on this rank."""
        self._bar.update(pairs)
        self._bar.set_postfix_str(f"{self._bar.n * self._bytes_each / 1e9:,.2f} GB", refresh=False)

    def refresh_others(self) -> None:
        """Count the shards that other ranks have written since."""
        if not self._disable and current_world().size > 1:
            self._bar.update(max(self._finished() - self._bar.n, 0))

    def _finished(self) -> int:
        for i, file in enumerate(self._files):
            if i not in self._done and note_of(file).exists():
                self._done.add(i)
        return sum(self._rows[i] for i in self._done)
