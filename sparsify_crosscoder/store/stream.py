"""Shuffled batches of activation pairs, from running models or from a store.

Both streams put all pairs of all epochs into one endless global sequence, which depends on the
windows, the seed and (for live harvest) `buffer_pairs`, never on how many processes read it or
where they begin. Step t is rows [t * N, (t + 1) * N) of it, N being the pairs of a step over all
processes; a process yields its own part of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..harvest.report import HarvestReport
from .pair_notes import PairNotes, join_notes


class ActivationStream(ABC):
    """Pairs of all epochs as one endless sequence; what training reads from."""

    def __init__(self) -> None:
        self._report = HarvestReport()

    @property
    @abstractmethod
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes; known before any model runs."""

    @property
    @abstractmethod
    def d_sources(self) -> list[int]:
        """Width of each source."""

    @abstractmethod
    def _read(self, start: int, stop: int) -> list[Tensor]:
        """This rank's rows among [start, stop) of the global sequence, in its order."""

    def notes(self, start: int, stop: int) -> PairNotes:
        """Where the rows come from that `_read` gives of [start, stop), in the same order.

        Raises ValueError for a stream of pairs without texts.
        """
        raise ValueError(f"Where the pairs of a {type(self).__name__} come from is not known.")

    def texts(self, start: int, stop: int) -> Tensor | None:
        """Which text each of the same rows is from, `[n]`; None if that is not known.

        Pairs of one text are not independent: whoever estimates an error keeps them together.
        """
        return None

    def batches(
        self, first_step: int, last_step: int, pairs_per_step: int
    ) -> Iterator[list[Tensor]]:
        """Steps [first_step, last_step): this rank's rows, one [n, d_s] per source, n may be 0."""
        for step in range(first_step, last_step):
            yield self._read(step * pairs_per_step, (step + 1) * pairs_per_step)

    def sample(self, num_pairs: int) -> list[Tensor]:
        """This rank's part of the first `num_pairs` pairs, of one epoch at most."""
        return self._read(0, min(num_pairs, self.num_pairs))

    def report(self) -> HarvestReport:
        """What this rank has read so far."""
        return self._report


def every_pair(
    stream: ActivationStream,
    largest: int,
    num_pairs: int | None = None,
    least_batches: int = 1,
    first: int = 0,
) -> Iterator[list[Tensor]]:
    """This rank's part of an epoch, or of its first `num_pairs`, every pair exactly once.

    In at least so many batches of at most `largest` pairs over all processes, all of one size but
    for the last, which has what is left. Every process gets the same number of batches. With
    `first`, a multiple of `largest`, the pairs before it are left out.
    """
    if first % largest:
        raise ValueError(f"Batches of {largest} do not begin at pair {first}.")
    for steps in _steps(stream, largest, num_pairs, least_batches, first):
        yield _joined(stream, steps)


def every_noted_pair(
    stream: ActivationStream, largest: int, num_pairs: int | None = None, least_batches: int = 1
) -> Iterator[tuple[list[Tensor], PairNotes]]:
    """The batches of `every_pair`, each with where its pairs come from."""
    for steps in _steps(stream, largest, num_pairs, least_batches):
        spans = [(step * size, (step + 1) * size) for step, size in steps]
        yield _joined(stream, steps), join_notes(stream.notes(*span) for span in spans)


def _steps(
    stream: ActivationStream,
    largest: int,
    num_pairs: int | None,
    least_batches: int,
    first: int = 0,
) -> Iterator[list[tuple[int, int]]]:
    """The steps that make up each batch of `every_pair`, with the pairs of such a step."""
    total = stream.num_pairs if num_pairs is None else min(num_pairs, stream.num_pairs)
    if total <= first:
        return
    size = largest if first else -(-total // max(-(-total // largest), least_batches))
    if not first and -(-total // size) < least_batches:
        size = max(total // least_batches, 1)
    whole = total // size
    for step in range(first // size, whole):
        yield [(step, size)]
    pieces, start = [], whole * size
    while start < total:
        # A step begins at a multiple of its size: the largest power of two that fits.
        piece = start & -start
        while start + piece > total:
            piece //= 2
        pieces.append((start // piece, piece))
        start += piece
    if pieces:
        yield pieces


def _joined(stream: ActivationStream, steps: list[tuple[int, int]]) -> list[Tensor]:
    pieces = [batch for step, size in steps for batch in stream.batches(step, step + 1, size)]
    if len(pieces) == 1:
        return pieces[0]
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


class SelectedSources(ActivationStream):
    """Some of another stream's sources, by number, in any order; one may be there twice.

    `SelectedSources(stream, [0, 0])` compares a model with itself. Raises ValueError for a source
    that the stream does not have.
    """

    def __init__(self, stream: ActivationStream, sources: Sequence[int]):
        super().__init__()
        count = len(stream.d_sources)
        if not sources or not all(0 <= s < count for s in sources):
            raise ValueError(f"The stream has sources 0..{count - 1}, not all of {list(sources)}.")
        self.stream, self.selected = stream, list(sources)

    @property
    def num_pairs(self) -> int:
        """Pairs in an epoch, over all processes."""
        return self.stream.num_pairs

    @property
    def d_sources(self) -> list[int]:
        return [self.stream.d_sources[s] for s in self.selected]

    def report(self) -> HarvestReport:
        return self.stream.report()

    def notes(self, start: int, stop: int) -> PairNotes:
        return self.stream.notes(start, stop)

    def texts(self, start: int, stop: int) -> Tensor | None:
        return self.stream.texts(start, stop)

    def _read(self, start: int, stop: int) -> list[Tensor]:
        read = self.stream._read(start, stop)
        return [read[s] for s in self.selected]
