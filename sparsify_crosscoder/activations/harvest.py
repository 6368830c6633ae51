"""Running the models over windows and keeping the activations at the aligned positions."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from .sources import Source, first_tensor


@dataclass
class HarvestReport:
    """What a harvest read and kept; reports of consecutive harvests add up with `+`."""

    windows: int = 0
    """Windows read."""

    pairs: int = 0
    """Aligned pairs whose activations were kept."""

    tokens: list[int] = field(default_factory=list)
    """Tokens that each source's model read, padding not counted."""

    seconds: float = 0.0
    """Wall time."""

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.seconds if self.seconds else 0.0

    def __add__(self, other: "HarvestReport") -> "HarvestReport":
        if self.tokens and other.tokens and len(self.tokens) != len(other.tokens):
            raise ValueError("Reports over different numbers of sources cannot be added.")
        tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=False)]
        return HarvestReport(
            windows=self.windows + other.windows,
            pairs=self.pairs + other.pairs,
            tokens=tokens or [*self.tokens, *other.tokens],
            seconds=self.seconds + other.seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "windows": self.windows,
            "pairs": self.pairs,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "pairs_per_second": self.pairs_per_second,
        }


class Harvest(NamedTuple):
    """Activations of some windows' pairs, in the order in which the windows were asked for."""

    activations: list[Tensor]
    """[pairs, d_s] per source, on the source's device and in its model's dtype."""

    origin: Tensor
    """[pairs, 2]: the row of the windows dataset, and the number of the pair in that window."""

    report: HarvestReport


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

    Raises ValueError where an activation is NaN or infinite.
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
) -> Harvest:
    """`harvest_windows` with its report; `progress` gets the pairs of each batch of source 0."""
    if batch_size < 1:
        raise ValueError(f"batch_size counts windows and must be at least 1, got {batch_size}.")
    begun = time.perf_counter()
    row_numbers = np.fromiter(rows, dtype=np.int64)
    columns = [f"{kind}_{s}" for kind in ("input_ids", "pairs") for s in range(len(sources))]
    texts = windows.select_columns(["text_id", *columns]).with_format(None)[row_numbers]
    counts = np.array([len(pairs) for pairs in texts["pairs_0"]], dtype=np.int64)
    num_pairs = int(counts.sum())

    activations, finite = [], []
    for source in sources:
        model = source.model
        activations.append(
            torch.empty(num_pairs, source.width, dtype=model.dtype, device=model.device)
        )
        finite.append(torch.ones(num_pairs, dtype=torch.bool, device=model.device))

    def run(members: list[int], cancelled: Event) -> None:
        batches = _batches(texts, members, counts, batch_size)
        for batch in batches:
            if cancelled.is_set():
                return
            _run_model(sources, members, batch, activations, finite, stop_early)
            if 0 in members:
                progress(len(batch.destination))

    _side_by_side(run, _lanes(sources, texts))
    _check_finite(sources, finite, np.repeat(texts["text_id"], counts))

    first = np.cumsum(counts) - counts
    pair_numbers = np.arange(num_pairs) - np.repeat(first, counts)
    origin = torch.from_numpy(np.stack([np.repeat(row_numbers, counts), pair_numbers], axis=1))
    tokens = [sum(map(len, texts[f"input_ids_{s}"])) for s in range(len(sources))]
    seconds = time.perf_counter() - begun
    return Harvest(activations, origin, HarvestReport(len(row_numbers), num_pairs, tokens, seconds))


class _Batch(NamedTuple):
    """Windows that one forward reads, and where the activations of their P pairs belong."""

    input_ids: Tensor
    """[windows, tokens], padded on the right."""

    attention_mask: Tensor

    window: Tensor
    """[P] window inside the batch."""

    position: dict[int, Tensor]
    """[P] token position, by source."""

    destination: Tensor
    """[P] row of the result."""


def _batches(
    texts: dict[str, Any],
    members: list[int],
    counts: np.ndarray,
    batch_size: int,
) -> Iterator[_Batch]:
    """Batches of similar length, the same for the same windows whatever ran before."""
    token_ids = texts[f"input_ids_{members[0]}"]
    ends = np.cumsum(counts).tolist()
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda i: len(token_ids[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(token_ids[i]) for i in chosen])
        input_ids = pad_sequence([torch.tensor(token_ids[i]) for i in chosen], batch_first=True)
        yield _Batch(
            input_ids=input_ids,
            attention_mask=(torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            window=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts[chosen])),
            position={
                s: torch.from_numpy(np.concatenate([texts[f"pairs_{s}"][i] for i in chosen]))
                for s in members
            },
            destination=torch.from_numpy(
                np.concatenate([np.arange(ends[i] - int(counts[i]), ends[i]) for i in chosen])
            ),
        )


@torch.inference_mode()
def _run_model(
    sources: Sequence[Source],
    members: list[int],
    batch: _Batch,
    activations: list[Tensor],
    finite: list[Tensor],
    stop_early: bool,
) -> None:
    """One forward for the sources `members`: fills their rows of `activations` and `finite`."""
    model = sources[members[0]].model
    device = model.device
    window, destination = batch.window.to(device), batch.destination.to(device)

    def keep(hookpoint: str, hidden: Tensor) -> None:
        for s in members:
            if sources[s].hookpoint == hookpoint:
                rows = hidden[window, batch.position[s].to(device)]
                activations[s][destination] = rows.to(activations[s].dtype)
                finite[s][destination] = rows.isfinite().all(dim=1)

    # A trainer's autocast must not reach the models: their dtype is chosen once, at loading.
    with (
        torch.autocast(device.type, enabled=False),
        _reading(model, {sources[s].hookpoint for s in members}, keep, stop_early),
    ):
        model(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            use_cache=False,
        )


class _AllRead(Exception):
    """Ends a forward whose last hookpoint has been read."""


@contextmanager
def _reading(
    model: PreTrainedModel,
    hookpoints: Iterable[str],
    keep: Callable[[str, Tensor], None],
    stop_early: bool,
) -> Iterator[None]:
    """Inside, a forward hands every hookpoint's output to `keep` and ends after the last."""
    waiting = set(hookpoints)

    def hook(hookpoint: str, output: Any) -> None:
        keep(hookpoint, first_tensor(output))
        waiting.discard(hookpoint)
        if stop_early and not waiting:
            raise _AllRead

    handles = [
        model.base_model.get_submodule(hookpoint).register_forward_hook(
            lambda module, args, output, hookpoint=hookpoint: hook(hookpoint, output)
        )
        for hookpoint in tuple(waiting)
    ]
    try:
        with suppress(_AllRead):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _lanes(sources: Sequence[Source], texts: dict[str, Any]) -> list[list[list[int]]]:
    """Which forwards run side by side: lanes of forwards, a forward being the sources it serves.

    Sources that share a model and read the same tokens share a forward. Models on the CPU get a
    lane each, models on one accelerator take turns.
    """
    lanes: dict[Any, list[list[int]]] = {}
    for s, source in enumerate(sources):
        device = source.model.device
        forwards = lanes.setdefault(id(source.model) if device.type == "cpu" else device, [])
        for members in forwards:
            same_model = sources[members[0]].model is source.model
            if same_model and texts[f"input_ids_{members[0]}"] == texts[f"input_ids_{s}"]:
                members.append(s)
                break
        else:
            forwards.append([s])
    return list(lanes.values())


def _side_by_side(run: Callable[[list[int], Event], None], lanes: list[list[list[int]]]) -> None:
    """Run the lanes in a thread each, the CPU's cores divided among them; one lane runs here."""
    cancelled = Event()

    def run_lane(forwards: list[list[int]]) -> None:
        for members in forwards:
            run(members, cancelled)

    if len(lanes) == 1:
        return run_lane(lanes[0])
    cores = torch.get_num_threads()
    threads_each = max(1, cores // len(lanes))
    with ThreadPoolExecutor(
        len(lanes), "harvest", initializer=torch.set_num_threads, initargs=(threads_each,)
    ) as pool:
        futures = [pool.submit(run_lane, forwards) for forwards in lanes]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            cancelled.set()  # leaving the pool waits for every lane: let them end soon
            raise
        finally:
            # The setting is the calling thread's own, but threads started later inherit the last.
            torch.set_num_threads(cores)


def _check_finite(sources: Sequence[Source], finite: list[Tensor], text_ids: np.ndarray) -> None:
    for source, ok in zip(sources, finite, strict=True):
        if bool(ok.all()):
            continue
        bad = text_ids[(~ok).cpu().numpy()]
        raise ValueError(
            f"{source.name} gives NaN or infinite activations at {source.hookpoint} for "
            f"{len(bad)} of {len(ok)} pairs, first in text {bad[0]} (text_id). Its weights or its "
            f"dtype ({source.model.dtype}) are the usual cause: try float32."
        )
