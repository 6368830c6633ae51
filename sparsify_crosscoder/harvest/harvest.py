"""Running the models over windows and keeping the activations at the aligned positions."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..hardware import available_memory
from .batching import FORWARD_COST, FORWARD_COST_CPU, Batch, batches_by_length
from .limits import check_window_limits
from .placement import accelerate_hooks, execution_devices, input_device, module_device
from .sources import Source, first_tensor
from .workers import Reading, run_side_by_side


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
    """[pairs, d_s] per source, in its model's dtype, on the device of its hookpoint's output."""

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
) -> Harvest:
    """`harvest_windows` with its report; `progress` gets pairs as all models have read them."""
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

    kept = [_Kept.empty(source, num_pairs) for source in sources]
    lanes = [
        [_reading_of(sources, members, texts, counts, batch_size) for members in lane]
        for lane in _lanes(sources, texts)
    ]
    done = _Done(lanes, progress)

    def run(model: PreTrainedModel, members: list[int], batch: Batch) -> None:
        _run_model(sources, model, members, batch, kept, stop_early)
        done.add(members, len(batch.destination))

    run_side_by_side(lanes, run, _most_workers(lanes))
    _check_finite(sources, kept, np.repeat(texts["text_id"], counts))

    first = np.cumsum(counts) - counts
    pair_numbers = np.arange(num_pairs) - np.repeat(first, counts)
    origin = torch.from_numpy(np.stack([np.repeat(row_numbers, counts), pair_numbers], axis=1))
    tokens = [sum(map(len, texts[f"input_ids_{s}"])) for s in range(len(sources))]
    seconds = time.perf_counter() - begun
    report = HarvestReport(len(row_numbers), num_pairs, tokens, seconds)
    return Harvest([x.activations for x in kept], origin, report)


class _Kept(NamedTuple):
    """What is kept of one source, filled by its forwards."""

    activations: Tensor
    """[pairs, d_s]."""

    finite: Tensor
    """[pairs]: whether all of a row is."""

    @classmethod
    def empty(cls, source: Source, num_pairs: int) -> "_Kept":
        model = source.model
        device = module_device(model.base_model.get_submodule(source.hookpoint))
        device = device or input_device(model)
        activations = torch.empty(num_pairs, source.width, dtype=model.dtype, device=device)
        return cls(activations, torch.ones(num_pairs, dtype=torch.bool, device=device))

    def put(self, destination: Tensor, rows: Tensor) -> None:
        """Keep `rows` [n, d_s], of any dtype and device, as the pairs `destination` [n]."""
        rows = rows.to(self.activations)
        destination = destination.to(rows.device)
        self.activations[destination] = rows
        self.finite[destination] = rows.isfinite().all(dim=1)


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


def _reading_of(
    sources: Sequence[Source],
    members: list[int],
    texts: dict[str, Any],
    counts: np.ndarray,
    batch_size: int,
) -> Reading:
    """What the model of the sources `members` is to read."""
    model = sources[members[0]].model
    # By where it computes: a model that is partly offloaded gives the bits of a whole one.
    on_cpu = input_device(model).type == "cpu"
    cost = FORWARD_COST_CPU if on_cpu else FORWARD_COST
    batches = list(batches_by_length(texts, members, counts, batch_size, cost))
    shared = torch.get_num_threads() > 1 and {d.type for d in execution_devices(model)} == {"cpu"}
    return Reading(model, members, batches, shared=shared)


def _most_workers(lanes: Sequence[Sequence[Reading]]) -> int:
    """As many as there are threads, if memory has room for what each one's batch needs."""
    needed = 1
    for reading in (reading for lane in lanes for reading in lane):
        config = reading.model.config.get_text_config(decoder=True)
        width = getattr(config, "hidden_size", 0)
        inner = getattr(config, "intermediate_size", None) or 4 * width
        if isinstance(inner, int):
            most = max((batch.input_ids.numel() for batch in reading.batches), default=0)
            needed = max(needed, most * (4 * width + 3 * inner) * reading.model.dtype.itemsize)
    return min(torch.get_num_threads(), max(1, available_memory() // (2 * needed)))


@torch.inference_mode()
def _run_model(
    sources: Sequence[Source],
    model: PreTrainedModel,
    members: list[int],
    batch: Batch,
    kept: list[_Kept],
    stop_early: bool,
) -> None:
    """One forward of a model, or a copy of it, for the sources `members`: fills rows of `kept`."""
    device = input_device(model)

    def keep(hookpoint: str, hidden: Tensor) -> None:
        window = batch.window.to(hidden.device)
        for s in members:
            if sources[s].hookpoint == hookpoint:
                rows = hidden[window, batch.position[s].to(hidden.device)]
                kept[s].put(batch.destination, rows)

    with ExitStack() as stack:
        # A trainer's autocast must not reach the models: their dtype is chosen once, at loading.
        for kind in {one.type for one in execution_devices(model)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        hookpoints = {sources[s].hookpoint for s in members}
        stack.enter_context(_reading(model, hookpoints, keep, stop_early))
        mask = None if all(sources[s].causal for s in members) else batch.attention_mask.to(device)
        model(input_ids=batch.input_ids.to(device), attention_mask=mask, use_cache=False)


class _AllRead(Exception):
    """Ends a forward whose last hookpoint, which it names, has been read."""


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
            raise _AllRead(hookpoint)

    handles = [
        model.base_model.get_submodule(hookpoint).register_forward_hook(
            lambda module, args, output, hookpoint=hookpoint: hook(hookpoint, output)
        )
        for hookpoint in tuple(waiting)
    ]
    try:
        yield
    except _AllRead as read:
        _leave(model.base_model, str(read))
    finally:
        for handle in handles:
            handle.remove()


def _leave(model: nn.Module, hookpoint: str) -> None:
    """End what accelerate began in the modules around a hookpoint behind which a forward stopped.

    Weights of their own that were loaded for the forward go back to where they are offloaded.
    """
    parts = hookpoint.split(".")
    for depth in reversed(range(len(parts))):
        module = model.get_submodule(".".join(parts[:depth]))
        for hook in accelerate_hooks(module):
            hook.post_forward(module, ())


def _lanes(sources: Sequence[Source], texts: dict[str, Any]) -> list[list[list[int]]]:
    """Which forwards run side by side: lanes of forwards, a forward being the sources it serves.

    Sources that share a model and read the same tokens share a forward. Models that share an
    accelerator take turns, and so do those on the CPU where it has fewer threads than models.
    """
    forwards: dict[int, list[list[int]]] = {}
    for s, source in enumerate(sources):
        of_model = forwards.setdefault(id(source.model), [])
        for members in of_model:
            if texts[f"input_ids_{members[0]}"] == texts[f"input_ids_{s}"]:
                members.append(s)
                break
        else:
            of_model.append([s])

    on_cpu: list[list[list[int]]] = []
    elsewhere: list[tuple[set[torch.device], list[list[int]]]] = []
    for of_model in forwards.values():
        devices = execution_devices(sources[of_model[0][0]].model)
        devices = {device for device in devices if device.type != "cpu"}
        if not devices:
            on_cpu.append(of_model)
            continue
        sharing = [lane for lane in elsewhere if lane[0] & devices]
        elsewhere = [lane for lane in elsewhere if not lane[0] & devices]
        devices = devices.union(*(used for used, _ in sharing))
        elsewhere.append((devices, [f for _, before in sharing for f in before] + of_model))
    count = min(len(on_cpu), torch.get_num_threads())
    lanes = [[f for of_model in on_cpu[i::count] for f in of_model] for i in range(count)]
    return lanes + [lane for _, lane in elsewhere]


def _check_finite(sources: Sequence[Source], kept: list[_Kept], text_ids: np.ndarray) -> None:
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
