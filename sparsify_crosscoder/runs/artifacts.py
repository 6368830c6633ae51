"""From the run's options to the pairs it trains on: models, texts, alignment, harvest."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import numpy as np
import torch

from ..hardware import pick_device
from ..harvest.limits import check_windows
from ..harvest.model_name import name_models
from ..harvest.placement import Placement
from ..harvest.source import Source
from ..harvest.sources import load_sources
from ..registry import get_architecture
from ..store.live_stream import LiveStream
from ..store.manifest import is_store, read_manifest
from ..store.order import split_windows
from ..store.store import ActivationStore
from ..store.store_stream import StoreStream
from ..store.stream import ActivationStream
from ..text.alignment_report import alignment_report
from ..text.loss_reasons import warn_of_loss
from ..text.templates import TEMPLATE_DATE
from ..text.text_loss import measure_loss
from ..text.texts import load_texts
from ..text.tokenization import source_tokenizers
from ..text.windows import prepare_windows
from ..training.data import PairedData, check_length
from ..world import current_world
from .provenance import (
    check_models,
    check_store,
    check_texts,
    record,
    recorded_revisions,
    source_of_run,
    sources_of_store,
)

if TYPE_CHECKING:
    from ..cli import RunConfig

HELD_OUT_SEED = 0
_PROBED_TEXTS = 2048
T = TypeVar("T")


# Options that say which pairs a run's texts give.
TEXT_OPTIONS = (
    "dataset",
    "split",
    "data_args",
    "text_column",
    "extra_datasets",
    "dataset_weights",
    "max_examples",
    "shuffle_seed",
    "ctx_len",
    "chat_format",
    "exclude_tokens",
    "pairs",
)
_SAID = ("characters", "extras")  # what an alignment reports that takes the texts themselves


def text_options(args: RunConfig) -> RunConfig:
    """The options that say which texts a run reads; of one from a store, those of the harvest.

    Raises ValueError for a store of several harvests.
    """
    if not is_store(args.dataset):
        return args
    manifest = read_manifest(Path(args.dataset))
    assert manifest is not None
    origins = [part["origin"] for part in manifest["parts"]]
    if len(origins) > 1 or origins[0] is None:
        raise ValueError(
            f"The texts of the store '{args.dataset}' cannot be read again: it was not made by one "
            "`sparsify-crosscoder harvest`."
        )
    of_harvest = copy.copy(args)
    for name in TEXT_OPTIONS:
        setattr(of_harvest, name, origins[0][name])
    return of_harvest


def load_run_texts(args: RunConfig) -> datasets.Dataset:
    """The texts that the options name."""
    args = text_options(args)
    return load_texts(
        args.dataset,
        split=args.split,
        data_args=args.data_args,
        text_column=args.text_column,
        extra_datasets=args.extra_datasets,
        weights=args.dataset_weights,
        max_examples=args.max_examples,
        shuffle_seed=args.shuffle_seed,
    )


def align_texts(
    args: RunConfig, texts: datasets.Dataset, sources: list[Source]
) -> datasets.Dataset:
    """Aligned windows of any texts, made as the run's own are."""
    args = text_options(args)
    return prepare_windows(
        texts,
        [source.tokenizer for source in sources],
        ctx_len=args.ctx_len,
        chat_format=args.chat_format,
        exclude_tokens=args.exclude_tokens,
        num_proc=args.data_preprocessing_num_proc,
        warn=False,
    )


def load_windows(args: RunConfig, sources: list[Source]) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Aligned windows of the run's texts, and what the alignment reports.

    With --pairs, those of the first texts that give so many. Warns where much of what the texts say
    is in no pair. Raises ValueError if all texts give fewer, for windows that a model cannot read,
    and if a run that was begun before has read other ones.
    """
    args = text_options(args)
    texts = load_run_texts(args)
    num_texts = len(texts)
    if args.pairs is None:
        windows = align_texts(args, texts, sources)
    else:
        windows = _enough_windows(args, texts, sources, args.pairs)
        num_texts = windows[-1]["text_id"] + 1
        texts = texts.select(range(num_texts))
    check_windows(sources, windows)
    check_texts(args, windows)
    tokenizers = source_tokenizers([source.tokenizer for source in sources])
    loss = measure_loss(texts, windows, tokenizers, args.chat_format)
    if current_world().rank == 0:
        warn_of_loss(loss, texts, tokenizers, args.chat_format, args.exclude_tokens)
    report = asdict(alignment_report(windows, num_texts, loss))
    return windows, {"alignment": report, "template_date": TEMPLATE_DATE}


def _enough_windows(
    args: RunConfig, texts: datasets.Dataset, sources: list[Source], pairs: int
) -> datasets.Dataset:
    """Windows of whole texts from the first on, until they have `pairs` pairs."""
    count = min(_PROBED_TEXTS, len(texts))
    while True:
        windows = align_texts(args, texts.select(range(count)), sources)
        ends = np.cumsum(np.asarray(windows["num_pairs"], dtype=np.int64))
        if ends[-1] >= pairs:
            text_ids = np.asarray(windows["text_id"], dtype=np.int64)
            last = text_ids[np.searchsorted(ends, pairs)]
            return windows.select(range(int(np.searchsorted(text_ids, last, side="right"))))
        if count == len(texts):
            raise ValueError(
                f"All {count:,} texts give {ends[-1]:,} pairs, fewer than the {pairs:,} that "
                "--pairs asks for: add --extra_datasets, or ask for fewer."
            )
        count = min(max(int(1.05 * count * pairs / ends[-1]), count + 1), len(texts))


def split_run_windows(
    args: RunConfig, windows: datasets.Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a run's windows that it trains on, and those that it holds out."""
    num_pairs = sum(windows["num_pairs"][:])
    return split_windows(windows, min(args.held_out_pairs, num_pairs // 10), HELD_OUT_SEED)


def load_run_sources(args: RunConfig, device: torch.device) -> list[Source]:
    """The models that the options name, read where the options say.

    They are on the options' `devices` if they name some. A run may be looked at on another machine
    than it was made on: if one of these is not there, all models are on `device`. Those of a run
    that was begun before are read at the commits that it recorded; raises ValueError if one is
    another model now.
    """
    try:
        devices = [pick_device(name) for name in args.devices]
    except ValueError:
        devices = []
    sources = load_sources(
        name_models(
            [args.model, *args.partners],
            run_revisions(args),
            token=args.hf_token,
            trust_remote_code=args.trust_remote_code,
        ),
        hookpoints=args.hookpoints,
        layers=args.layers,
        placement=Placement(device, devices, args.device_map),
        dtype=args.model_dtype,
        load_in_8bit=args.load_in_8bit,
    )
    check_models(args, sources)
    return sources


def run_revisions(args: RunConfig) -> list[str | None]:
    """The revision of each model: the commit that a run recorded, or what the options say."""
    asked = [args.revision, *(args.partner_revisions or [None] * len(args.partners))]
    recorded = recorded_revisions(args) or asked
    return [commit or revision for commit, revision in zip(recorded, asked, strict=True)]


def load_artifacts(args: RunConfig, device: torch.device) -> PairedData:
    """Load what a run needs; everything that can be wrong is found before any model is run.

    Sets `args.hookpoints` to one hookpoint per source. In a distributed run the first rank
    prepares the texts, and every rank harvests its share of the activation store. A run from a
    store needs no model.
    """
    if is_store(args.dataset):
        store = ActivationStore.open(args.dataset)
        check_store(args, store, whole=True)
        windows, widths = store.windows, store.d_sources
        report = asdict(alignment_report(windows, _num_texts(store)))
        facts: dict[str, Any] = {"alignment": report | _of_harvest(store, *_SAID)}
        facts |= _of_harvest(store, "template_date") | {"store": args.dataset}
        described = sources_of_store(store, [args.model, *args.partners])
    else:
        store = None
        sources = load_run_sources(args, device)
        described = [source_of_run(source) for source in sources]
        args.hookpoints, args.layers = [source.hookpoint for source in sources], []
        widths = [source.width for source in sources]
    coder = get_architecture(args.arch).coder_class
    coder.make_partition(args.sae.resolve_num_latents(widths), widths, args.sae)

    if store is None:
        windows, facts = _first_rank_first(lambda: load_windows(args, sources))
    train, held_out = split_run_windows(args, windows)
    counts = torch.tensor(windows["num_pairs"][:])
    args.resolve_schedule(check_length(args, int(counts[train].sum())))

    if store is None and args.cache is not None:
        store = _harvest_store(args, sources, windows, facts)
        facts |= {"store": args.cache, "harvest": store.report.to_dict()}
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
            batch_size=args.batch_size,
            buffer_pairs=args.buffer_pairs,
            seed=seed,
            **ranks,
        )

    return PairedData(
        stream(train, args.shuffle_seed),
        stream(held_out, HELD_OUT_SEED) if len(held_out) else None,
        described,
        facts,
        record(described, windows, store),
    )


def harvest_run(args: RunConfig, device: torch.device) -> dict[str, Any]:
    """Harvest the texts that the options name into the store of --cache; returns a report."""
    sources = load_run_sources(args, device)
    windows, facts = _first_rank_first(lambda: load_windows(args, sources))
    store = _harvest_store(args, sources, windows, facts)
    return facts | {
        "store": args.cache,
        "pairs": len(store),
        "bytes": store.num_bytes,
        "dtype": store.dtype,
        "harvest": store.report.to_dict(),
    }


def _harvest_store(
    args: RunConfig, sources: list[Source], windows: datasets.Dataset, facts: dict[str, Any]
) -> ActivationStore:
    assert args.cache is not None
    return ActivationStore.create(
        args.cache,
        sources,
        windows,
        batch_size=args.batch_size,
        shard_pairs=args.shard_pairs,
        dtype=args.dtype,
        append=args.append,
        origin={name: getattr(args, name) for name in TEXT_OPTIONS}
        | {name: facts["alignment"][name] for name in ("texts", *_SAID)}
        | {"template_date": facts["template_date"]},
    )


def _num_texts(store: ActivationStore) -> int:
    """Texts that were read for a store, those without a pair included where that is known."""
    origins = [part["origin"] for part in store.manifest["parts"]]
    if len(origins) == 1 and origins[0] is not None:
        return origins[0]["texts"]
    return len(np.unique(store.windows["text_id"]))


def _of_harvest(store: ActivationStore, *names: str) -> dict[str, Any]:
    """What the harvest of a store noted of its texts, nothing of one from several harvests."""
    origins = [part["origin"] for part in store.manifest["parts"]]
    if len(origins) > 1 or origins[0] is None:
        return {}
    return {name: origins[0][name] for name in names if name in origins[0]}


def run_store(args: RunConfig) -> ActivationStore | None:
    """The store that a run was trained from, if there is one; raises ValueError if it is another
    now."""
    if is_store(args.dataset):
        store = ActivationStore.open(args.dataset)
    elif args.cache is not None and Path(args.cache).exists():
        store = ActivationStore.open(args.cache)
    else:
        return None
    check_store(args, store)
    return store


def load_pairs(args: RunConfig, device: torch.device) -> ActivationStream:
    """All pairs of a run's texts, shuffled: from its store if there is one, or from its models."""
    store = run_store(args)
    if store is not None:
        return StoreStream(store, seed=args.shuffle_seed)
    sources = load_run_sources(args, device)
    windows, _ = load_windows(args, sources)
    return LiveStream(
        sources,
        windows,
        batch_size=args.batch_size,
        buffer_pairs=args.buffer_pairs,
        seed=args.shuffle_seed,
    )


def _first_rank_first(prepare: Callable[[], T]) -> T:
    """Let the first rank prepare what the others then find in its cache."""
    if not torch.distributed.is_initialized():
        return prepare()
    result = prepare() if torch.distributed.get_rank() == 0 else None
    torch.distributed.barrier()
    return prepare() if result is None else result
