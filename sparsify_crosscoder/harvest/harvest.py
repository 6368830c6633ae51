"""Running the models over windows and keeping the activations at the aligned positions."""

import time
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from .batching import Batch
from .divergence import LastStates, Watch, divergence_columns, next_token_columns
from .forwards import Kept, run_forward
from .lanes import lanes_of, most_workers, reading_of
from .limits import check_window_limits
from .report import HarvestReport
from .source import Source
from .workers import Reading, run_side_by_side


class Harvest(NamedTuple):
    """Activations of some windows' pairs, in the order in which the windows were asked for."""

    activations: list[Tensor]
    """[pairs, d_s] per source, in its model's dtype, on the device of its hookpoint's output."""

    origin: Tensor
    """[pairs, 2]: the row of the windows dataset, and the number of the pair in that window."""

    report: HarvestReport

    columns: dict[str, Tensor]
    """By name [pairs], float32: how next-token distributions differ, where all sources have heads
    (`divergence`)."""


def harvest_windows(
    sources: Sequence[Source],
    windows: Dataset,
    rows: Iterable[int],
    *,
    batch_size: int,
    stop_early: bool = True,
) -> tuple[list[Tensor], Tensor]:
    """Activations at every pair of the given windows: one [pairs, d_s] per source, and [pairs, 2].

    Pairs come window by window in the order of `rows`, ascending inside a window; the second
    result says where each comes from (row of `windows`, number of the pair in it). Every model
    reads its windows in batches of `batch_size`, sorted by length, and stops at its hookpoint
    unless `stop_early` is false. The same call on the same machine gives the same bits.

    Raises ValueError, before any model runs, for windows that a model cannot read (see
    `check_windows`), and where an activation is NaN or infinite.
    """
    harvest = run_harvest(sources, windows, rows, batch_size=batch_size, stop_early=stop_early)
    return harvest.activations, harvest.origin


def run_harvest(
    sources: Sequence[Source],
    windows: Dataset,
    rows: Iterable[int],
    *,
    batch_size: int,
    stop_early: bool = True,
    progress: Callable[[int], object] = lambda pairs: None,
    watch: Watch | None = None,
) -> Harvest:
    """`harvest_windows` with its report and columns; models with heads run to their end for those.

    `progress` gets pairs as all models have read them, `watch` all next tokens' probabilities.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size counts windows and must be at least 1, got {batch_size}.")
    begun = time.perf_counter()
    row_numbers = np.fromiter(rows, dtype=np.int64)
    columns = [f"{kind}_{s}" for kind in ("input_ids", "pairs") for s in range(len(sources))]
    texts = windows.select_columns(["text_id", *columns]).with_format(None)[row_numbers]
    for s, source in enumerate(sources):
        ids = texts[f"input_ids_{s}"]
        largest = max((max(window, default=-1) for window in ids), default=-1)
        check_window_limits(source, max(map(len, ids), default=0), largest)
    counts = np.array([len(pairs) for pairs in texts["pairs_0"]], dtype=np.int64)
    num_pairs = int(counts.sum())

    kept = [Kept.empty(source, num_pairs) for source in sources]
    forwards = lanes_of(sources, texts)
    if divergence_columns(sources):
        for members in (members for lane in forwards for members in lane):
            lengths = np.array([len(ids) for ids in texts[f"input_ids_{members[0]}"]])
            last = LastStates.empty(sources[members[0]], np.where(counts > 0, lengths, 0))
            for s in members:
                kept[s] = kept[s]._replace(last=last)
    lanes = [
        [reading_of(sources, members, texts, counts, batch_size) for members in lane]
        for lane in forwards
    ]
    done = _Done(lanes, progress)

    def run(model: PreTrainedModel, members: list[int], batch: Batch) -> None:
        run_forward(sources, model, members, batch, kept, stop_early)
        done.add(members, len(batch.destination))

    run_side_by_side(lanes, run, most_workers(lanes))
    _check_finite(sources, kept, np.repeat(texts["text_id"], counts))
    last = [one.last for one in kept if one.last is not None]
    columns = next_token_columns(sources, texts, counts, last, watch) if last else {}

    first = np.cumsum(counts) - counts
    pair_numbers = np.arange(num_pairs) - np.repeat(first, counts)
    origin = torch.from_numpy(np.stack([np.repeat(row_numbers, counts), pair_numbers], axis=1))
    tokens = [sum(map(len, texts[f"input_ids_{s}"])) for s in range(len(sources))]
    seconds = time.perf_counter() - begun
    report = HarvestReport(len(row_numbers), num_pairs, tokens, seconds)
    return Harvest([x.activations for x in kept], origin, report, columns)


class _Done:
    """Tells how many pairs every model has read: as many as the one that has read the fewest."""

    def __init__(self, lanes: Sequence[Sequence[Reading]], progress: Callable[[int], object]):
        self._read = {reading.members[0]: 0 for lane in lanes for reading in lane}
        self._told = 0
        self._progress = progress
        self._lock = Lock()

    def add(self, members: list[int], pairs: int) -> None:
        """The model of the sources `members` has read so many more."""
        with self._lock:
            self._read[members[0]] += pairs
            new = min(self._read.values()) - self._told
            self._told += new
            self._progress(new)


def _check_finite(sources: Sequence[Source], kept: list[Kept], text_ids: np.ndarray) -> None:
    for source, ok in zip(sources, (x.finite for x in kept), strict=True):
        if bool(ok.all()):
            continue
        bad = text_ids[(~ok).cpu().numpy()]
        raise ValueError(
            f"{source.name} gives NaN or infinite activations at {source.hookpoint} for "
            f"{len(bad)} of {len(ok)} pairs, first in text {bad[0]} (text_id). Its weights or its "
            f"dtype ({source.model.dtype}) are the usual cause: try "
            f"{'bfloat16 or ' if source.model.dtype == torch.float16 else ''}float32."
        )
