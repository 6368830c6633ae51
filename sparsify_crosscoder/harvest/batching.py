"""Batches that a model reads: windows of similar length, with little padding."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

FORWARD_COST, FORWARD_COST_CPU = 1024, 64
"""How many tokens a model could read in the time that a forward takes beyond its own tokens: a
rough value, and that on a CPU."""


class Batch(NamedTuple):
    """Windows that one forward reads, and where the activations of their P pairs belong."""

    input_ids: Tensor
    """[windows, tokens], padded on the right."""

    attention_mask: Tensor

    numbers: Tensor
    """[windows] which of all windows they are."""

    window: Tensor
    """[P] window inside the batch."""

    position: dict[int, Tensor]
    """[P] token position, by source."""

    destination: Tensor
    """[P] row of the result."""


def batches_by_length(
    texts: dict[str, Any],
    members: list[int],
    counts: np.ndarray,
    batch_size: int,
    forward_cost: int,
) -> Iterator[Batch]:
    """Batches of similar length for the sources `members`, which read the same tokens.

    `texts` are columns of windows, `counts` [windows] their pairs; windows without any are left
    out. The batches depend on nothing else.
    """
    token_ids = texts[f"input_ids_{members[0]}"]
    ends = np.cumsum(counts).tolist()
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda i: len(token_ids[i]))
    sizes = batch_sizes([len(token_ids[i]) for i in order], batch_size, forward_cost)
    for stop, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        chosen = order[stop - size : stop]
        lengths = torch.tensor([len(token_ids[i]) for i in chosen])
        input_ids = pad_sequence([torch.tensor(token_ids[i]) for i in chosen], batch_first=True)
        yield Batch(
            input_ids=input_ids,
            attention_mask=(torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            numbers=torch.tensor(chosen),
            window=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts[chosen])),
            position={
                s: torch.from_numpy(np.concatenate([texts[f"pairs_{s}"][i] for i in chosen]))
                for s in members
            },
            destination=torch.from_numpy(
                np.concatenate([np.arange(ends[i] - int(counts[i]), ends[i]) for i in chosen])
            ),
        )


def batch_sizes(lengths: Sequence[int], batch_size: int, forward_cost: int) -> list[int]:
    """How to cut texts of ascending lengths into batches of at most `batch_size` in least time.

    A batch takes as long as it has tokens, those of its padding included, and `forward_cost` more.
    """
    count = len(lengths)
    least = np.zeros(count + 1, dtype=np.int64)  # the time of the first n texts
    begin = np.zeros(count + 1, dtype=np.int64)  # where the last of their batches begins
    for stop in range(1, count + 1):
        first = max(0, stop - batch_size)
        times = least[first:stop] + np.arange(stop - first, 0, -1) * lengths[stop - 1]
        best = int(times.argmin())
        least[stop], begin[stop] = times[best] + forward_cost, first + best
    sizes = []
    while count:
        sizes.append(count - int(begin[count]))
        count = int(begin[count])
    return sizes[::-1]
