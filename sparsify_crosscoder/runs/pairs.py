"""The pairs of a run: for training, from its store, or from its models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..harvest.harvest import harvest_windows
from ..harvest.heads import Heads
from ..harvest.report import HarvestReport
from ..harvest.source import Source
from ..registry import get_architecture
from ..store.live_stream import LiveStream
from ..store.manifest import column_names, is_store, read_manifest
from ..store.pair_notes import WindowNotes
from ..store.store import ActivationStore
from ..store.store_stream import StoreStream
from ..store.stream import ActivationStream
from ..text.alignment_report import alignment_report
from ..text.window_numbers import window_numbers
from ..training.data import PairedData, check_length
from ..world import current_world
from .answers import make_answers
from .config import RunConfig
from .models import load_run_sources
from .provenance import (
    check_store,
    load_run_tokenizers,
    record,
    source_of_run,
    sources_of_store,
)
from .texts import HELD_OUT_SEED, TEXT_OPTIONS, load_own_texts, load_windows, split_run_windows

_SAID = ("characters", "extras")  # what an alignment reports that takes the texts themselves
CHUNK_PAIRS = 4096
T = TypeVar("T")


def load_training_data(config: RunConfig, device: torch.device) -> PairedData:
    """What a run trains on, by its architecture's own loader if it has one."""
    return (get_architecture(config.arch).load_artifacts or load_artifacts)(config, device)


def load_artifacts(config: RunConfig, device: torch.device) -> PairedData:
    """Load what a run needs; everything that can be wrong is found before any model is run.

    Sets `config.hookpoints` to one hookpoint per source, and what the options leave open of the
    schedule and the order. In a distributed run the first rank prepares the texts, and every rank
    harvests its share of the activation store. A run from a store needs no model.
    """
    if is_store(config.dataset):
        store = ActivationStore.open(config.dataset)
        check_store(config, store, whole=True)
        windows, widths = store.windows, store.d_sources
        report = asdict(alignment_report(windows, _num_texts(store)))
        facts: dict[str, Any] = {"alignment": report | _of_harvest(store, *_SAID)}
        facts |= _of_harvest(store, "template_date") | {"store": config.dataset}
        described = sources_of_store(store, [config.model, *config.partners])
    else:
        store = None
        _have_answers(config, device)
        sources = load_run_sources(config, device, _heads(config))
        described = [source_of_run(source) for source in sources]
        config.hookpoints, config.layers = [source.hookpoint for source in sources], []
        widths = [source.width for source in sources]
    coder = get_architecture(config.arch).coder_class
    coder.make_partition(config.sae.resolve_num_latents(widths), widths, config.sae)

    if store is None:
        windows, facts = _first_rank_first(lambda: load_windows(config, sources))
    train, held_out = split_run_windows(config, windows)
    counts = torch.from_numpy(window_numbers(windows, "num_pairs"))
    config.resolve_schedule(check_length(config, int(counts[train].sum())))
    config.resolve_order()
    assert config.order_seed is not None

    if store is None and config.cache is not None:
        store = _harvest_store(config, sources, windows, facts)
        facts |= {"store": config.cache, "harvest": store.report.to_dict()}
        del sources
        gc.collect()
    world = current_world()

    def stream(rows: torch.Tensor, seed: int) -> ActivationStream:
        ranks = {"rank": world.rank, "world_size": world.size}
        if store is not None:
            return StoreStream(store, window_rows=rows, seed=seed, **ranks)
        return LiveStream(
            sources,
            windows,
            window_rows=rows,
            batch_size=config.batch_size,
            buffer_pairs=config.buffer_pairs,
            seed=seed,
            **ranks,
        )

    return PairedData(
        stream(train, config.order_seed),
        stream(held_out, HELD_OUT_SEED) if len(held_out) else None,
        described,
        facts,
        record(described, windows, store),
    )


@dataclass(frozen=True)
class Harvested:
    """What a harvest put into a store."""

    facts: dict[str, Any]
    """What the alignment reported."""

    store: str
    pairs: int
    bytes: int
    dtype: str
    harvest: HarvestReport

    def to_dict(self) -> dict[str, Any]:
        return self.facts | {
            "store": self.store,
            "pairs": self.pairs,
            "bytes": self.bytes,
            "dtype": self.dtype,
            "harvest": self.harvest.to_dict(),
        }


def sources_and_windows(
    config: RunConfig, device: torch.device, heads: Heads
) -> tuple[list[Source], Dataset, dict[str, Any]]:
    """The models that the options name, aligned windows of the texts, and what these report.

    What the models are to answer they have answered before.
    """
    _have_answers(config, device)
    sources = load_run_sources(config, device, heads)
    return sources, *_first_rank_first(lambda: load_windows(config, sources))


def harvest_run(config: RunConfig, device: torch.device) -> Harvested:
    """Harvest the texts that the options name into the store of --cache."""
    assert config.cache is not None
    sources, windows, facts = sources_and_windows(config, device, _heads(config))
    store = _harvest_store(config, sources, windows, facts)
    return Harvested(facts, config.cache, len(store), store.num_bytes, store.dtype, store.report)


def _have_answers(config: RunConfig, device: torch.device) -> None:
    """Have the models answer what the options ask for, before they are loaded to be read."""
    if config.answers != "none":
        make_answers(config, _first_rank_first(lambda: load_own_texts(config)), device)


def _heads(config: RunConfig) -> Heads:
    """Whether the models of a harvest need their heads: those of a store that is there decide."""
    if config.cache is None:
        return "off"
    manifest = read_manifest(Path(config.cache))
    if config.kl != "auto" or not manifest:
        return config.kl
    return "on" if column_names(manifest["parts"][0]) else "off"


def _harvest_store(
    config: RunConfig, sources: list[Source], windows: Dataset, facts: dict[str, Any]
) -> ActivationStore:
    assert config.cache is not None
    return ActivationStore.create(
        config.cache,
        sources,
        windows,
        batch_size=config.batch_size,
        shard_pairs=config.shard_pairs,
        dtype=config.dtype,
        append=config.append,
        origin={name: getattr(config, name) for name in TEXT_OPTIONS}
        | {name: facts["alignment"][name] for name in ("texts", *_SAID)}
        | {"template_date": facts["template_date"]},
    )


def _num_texts(store: ActivationStore) -> int:
    """Texts that were read for a store, those without a pair included where that is known."""
    origins = [part["origin"] for part in store.manifest["parts"]]
    if len(origins) == 1 and origins[0] is not None:
        return origins[0]["texts"]
    return len(np.unique(window_numbers(store.windows, "text_id")))


def _of_harvest(store: ActivationStore, *names: str) -> dict[str, Any]:
    """What the harvest of a store noted of its texts, nothing of one from several harvests."""
    origins = [part["origin"] for part in store.manifest["parts"]]
    if len(origins) > 1 or origins[0] is None:
        return {}
    return {name: origins[0][name] for name in names if name in origins[0]}


def run_store(config: RunConfig) -> ActivationStore | None:
    """The store that a run was trained from, if there is one; raises ValueError if it is another
    now."""
    if is_store(config.dataset):
        store = ActivationStore.open(config.dataset)
    elif config.cache is not None and Path(config.cache).exists():
        store = ActivationStore.open(config.cache)
    else:
        return None
    check_store(config, store)
    return store


def load_pairs(config: RunConfig, device: torch.device) -> ActivationStream:
    """All pairs of a run's texts, shuffled: from its store if there is one, or from its models."""
    store = run_store(config)
    if store is not None:
        return StoreStream(store, seed=config.shuffle_seed)
    sources = load_run_sources(config, device)
    windows, _ = load_windows(config, sources)
    return LiveStream(
        sources,
        windows,
        batch_size=config.batch_size,
        buffer_pairs=config.buffer_pairs,
        seed=config.shuffle_seed,
    )


class FirstPairs(NamedTuple):
    """The first pairs of a run's texts, in their order."""

    chunks: Iterator[tuple[list[Tensor], Tensor, Tensor]]
    """Raw activations `[n, D_s]` per source, window `[n]`, and position in it `[n]`."""

    windows: Dataset
    tokenizers: list[Any]
    notes: WindowNotes
    """Who said and wrote what the pairs stand for, by window and position."""


def first_pairs(config: RunConfig, count: int, device: torch.device) -> FirstPairs:
    """Some `count` pairs of a run, from its store if there is one, or from its models."""
    store = run_store(config)
    if store is not None:
        tokenizers = load_run_tokenizers(config, store)

        def from_store():
            stop = min(count, len(store))
            for start in tqdm(range(0, stop, CHUNK_PAIRS), desc="Encoding", unit="chunk"):
                rows = torch.arange(start, min(start + CHUNK_PAIRS, stop))
                yield store.rows(rows), *store.provenance(rows)

        return FirstPairs(from_store(), store.windows, tokenizers, store.window_notes)

    sources = load_run_sources(config, device)
    windows, _ = load_windows(config, sources)
    counts = torch.from_numpy(window_numbers(windows, "num_pairs"))
    chosen = (counts.cumsum(0) - counts < count).nonzero()[:, 0]

    def from_models():
        for rows in tqdm(chosen.split(config.batch_size), desc="Harvesting", unit="batch"):
            raw, origin = harvest_windows(
                sources, windows, rows.tolist(), batch_size=config.batch_size
            )
            yield [x.to(device) for x in raw], origin[:, 0], origin[:, 1]

    tokenizers = [source.tokenizer for source in sources]
    return FirstPairs(from_models(), windows, tokenizers, WindowNotes(windows))


def _first_rank_first(prepare: Callable[[], T]) -> T:
    """Let the first rank prepare what the others then find in its cache."""
    if not torch.distributed.is_initialized():
        return prepare()
    result = prepare() if torch.distributed.get_rank() == 0 else None
    torch.distributed.barrier()
    return prepare() if result is None else result
