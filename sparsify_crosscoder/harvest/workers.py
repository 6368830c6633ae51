"""Forwards side by side: lanes of models, and workers that help where there is work left.

On a CPU one forward on several threads is slower than as many forwards on one thread each, since
threads wait for one another at every product. So there are as many workers as cores, with a thread
each, and one without a lane of its own, or at its end, takes batches of a model that has many left.
It runs them in a copy of the model that has the same weights: hooks, and what a forward notes in
its modules, are a copy's own. Batches are settled before, so who runs one changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from .shared_weights import copy_of

if TYPE_CHECKING:
    from .batching import Batch

WORTH_HELP = 1024
"""Tokens that a model must have left to read for each worker if one more is to help: a copy of a
model is made in the time of a few dozen."""


class Reading:
    """What one model still has to read for the sources `members`: batches of ascending length."""

    def __init__(
        self, model: PreTrainedModel, members: list[int], batches: Sequence[Batch], *, shared: bool
    ):
        self.model, self.members = model, members
        self.batches = deque(batches)
        self.total = self.left = sum(map(_tokens, batches))
        self.readers = 0
        """Workers whose lane it is in, or that help."""
        self.pristine: PreTrainedModel | None = None
        """What helpers copy, made before any hook is set; None where nobody can help."""
        if shared and self.total >= 2 * WORTH_HELP:
            self.pristine = copy_of(model)

    def take(self, *, longest: bool = False) -> Batch:
        batch = self.batches.pop() if longest else self.batches.popleft()
        self.left -= _tokens(batch)
        return batch


Run = Callable[[PreTrainedModel, list[int], "Batch"], None]
"""Runs one batch of a model, for the sources that it serves."""


def run_side_by_side(lanes: Sequence[Sequence[Reading]], run: Run, workers: int) -> None:
    """Have every lane's batches run by a worker of its own, and by helpers, `workers` in all.

    Within a lane, models take turns so that their shares of what is read stay alike. torch's
    threads are divided among the workers, and afterwards as before. A lane alone, without helpers,
    runs in the calling thread. An error of one worker ends all, after the batches that are running.
    """
    work = _Work(lanes, run)
    count = len(lanes) + max(0, min(workers - len(lanes), work.most_helpers()))
    if count == 1:
        return work.run_lane(lanes[0])
    before = torch.get_num_threads()
    each = max(1, before // count)
    with ThreadPoolExecutor(
        count, "harvest", initializer=torch.set_num_threads, initargs=(each,)
    ) as pool:
        own = [*lanes, *[()] * (count - len(lanes))]
        futures = [pool.submit(work.run_lane, lane) for lane in own]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            work.cancelled = True  # leaving the pool waits for every worker: let them end soon
            raise
        finally:
            # The setting is the calling thread's own, but threads started later inherit the last.
            torch.set_num_threads(before)


class _Work:
    """Who takes which batch next."""

    def __init__(self, lanes: Sequence[Sequence[Reading]], run: Run):
        self.readings = [reading for lane in lanes for reading in lane]
        self.run = run
        self.lock = Lock()
        self.cancelled = False
        for reading in self.readings:
            reading.readers = 1

    def most_helpers(self) -> int:
        """How many workers without a lane would find something to do."""
        shared = (reading for reading in self.readings if reading.pristine is not None)
        return sum(min(one.left // WORTH_HELP, len(one.batches)) - 1 for one in shared)

    def run_lane(self, lane: Sequence[Reading]) -> None:
        """Run a lane's batches, then help others."""
        while not self.cancelled:
            with self.lock:
                own = [reading for reading in lane if reading.batches]
                if not own:
                    break
                reading = max(own, key=lambda reading: reading.left / reading.total)
                batch = reading.take()
            self.run(reading.model, reading.members, batch)
        while not self.cancelled:
            with self.lock:
                reading = self._most_left()
                if reading is None:
                    return
                assert reading.pristine is not None
                reading.readers += 1
                model = copy_of(reading.pristine)
            if model is None:
                return
            self._help(reading, model)

    def _most_left(self) -> Reading | None:
        able = [reading for reading in self.readings if reading.pristine is not None]
        most = max(able, key=lambda one: one.left / (1 + one.readers), default=None)
        if most is None or most.left < (1 + most.readers) * WORTH_HELP:
            return None
        return most

    def _help(self, reading: Reading, model: PreTrainedModel) -> None:
        while not self.cancelled:
            with self.lock:
                if not reading.batches:
                    return
                batch = reading.take(longest=True)
            self.run(model, reading.members, batch)


def _tokens(batch: Batch) -> int:
    return batch.input_ids.numel()
