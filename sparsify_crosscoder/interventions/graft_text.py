"""Text to try a crosscoder's reconstruction on: whole texts that the run held out, if it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..harvest.source import Source
from ..runs.pairs import run_store
from ..runs.run import Run
from ..runs.texts import load_windows, split_run_windows
from ..text.window_numbers import window_numbers

MOST_PAIRS = 128
"""Of one text: what comes behind is cut off, so that long texts do not take all of the time."""

LEAST_TEXTS = 2
"""So that an interval can be had."""


@dataclass(frozen=True)
class AlignedText:
    """The beginnings of some texts, one window of each, with the pairs of all models in them."""

    windows: Dataset
    """`text_id`, and for each source s `input_ids_{s}` and `pairs_{s}`."""

    held_out: bool
    """Whether the run did not train on them."""

    @property
    def counts(self) -> np.ndarray:
        """Pairs of each window."""
        return np.array([len(pairs) for pairs in self.windows["pairs_0"]], dtype=np.int64)

    @property
    def text_of_pair(self) -> Tensor:
        """Which of the texts each pair is of, `[P]`."""
        return torch.from_numpy(np.repeat(np.arange(len(self.windows)), self.counts))

    def next_tokens(self, source: int) -> NextTokens:
        """The tokens of one source that have a next one."""
        ids = [torch.tensor(one) for one in self.windows[f"input_ids_{source}"]]
        first = list(accumulate(map(len, ids), initial=0))
        rows = [start + torch.arange(len(one) - 1) for start, one in zip(first, ids, strict=False)]
        texts = [torch.full((len(one) - 1,), text) for text, one in enumerate(ids)]
        following = torch.cat([one[1:] for one in ids])
        return NextTokens(torch.cat(rows), following, torch.cat(texts))


@dataclass(frozen=True)
class NextTokens:
    """T tokens of a source's windows that are not the last of theirs."""

    rows: Tensor
    """`[T]` their numbers among all tokens of all windows."""

    following: Tensor
    """`[T]` ids of the tokens behind them."""

    texts: Tensor
    """`[T]` which of the texts they are of."""


def text_to_graft(run: Run, sources: Sequence[Source], count: int) -> AlignedText:
    """At most `count` of the run's texts, evenly from all that it held out, or from all that there
    are where these are fewer than `LEAST_TEXTS`.

    Raises ValueError where there are too few texts, or fewer are asked for.
    """
    if count < LEAST_TEXTS:
        raise ValueError(f"--texts must be at least {LEAST_TEXTS}, for an interval; got {count}.")
    store = run_store(run.config)
    windows = load_windows(run.config, list(sources))[0] if store is None else store.windows
    _, held_out = split_run_windows(run.config, windows)
    rows, unseen = _first_windows(windows, held_out.numpy()), True
    if len(rows) < LEAST_TEXTS:
        rows, unseen = _first_windows(windows, np.arange(len(windows))), False
    if len(rows) < LEAST_TEXTS:
        raise ValueError(f"The run has {len(rows)} texts with pairs; {LEAST_TEXTS} are needed.")
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    return AlignedText(_cut(windows.select(chosen), len(sources)), unseen)


def _first_windows(windows: Dataset, rows: np.ndarray) -> np.ndarray:
    """Of each text the first of these rows that has a pair."""
    rows = rows[window_numbers(windows, "num_pairs")[rows] > 0]
    _, first = np.unique(window_numbers(windows, "text_id")[rows], return_index=True)
    return rows[np.sort(first)]


def _cut(windows: Dataset, num_sources: int) -> Dataset:
    """Up to the token behind the last of the first `MOST_PAIRS` pairs."""
    columns: dict[str, list] = {"text_id": windows["text_id"][:]}
    for s in range(num_sources):
        pairs = [one[:MOST_PAIRS] for one in windows[f"pairs_{s}"]]
        columns[f"pairs_{s}"] = pairs
        columns[f"input_ids_{s}"] = [
            ids[: kept[-1] + 2] if len(kept) == MOST_PAIRS else ids
            for ids, kept in zip(windows[f"input_ids_{s}"], pairs, strict=True)
        ]
    return Dataset.from_dict(columns)
