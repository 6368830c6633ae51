"""From the run's options to the pairs it trains on: models, texts, alignment, harvest."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import torch
from sparsify.utils import simple_parse_args_string

from ..activations.sources import Source, load_sources, pick_device
from ..activations.store import ActivationStore
from ..activations.stream import ActivationStream, LiveStream, StoreStream, split_windows
from ..activations.text import load_texts
from ..activations.windows import alignment_report, prepare_windows
from ..registry import get_architecture
from ..world import current_world
from .data import PairedData, check_length

if TYPE_CHECKING:
    from ..cli import RunConfig

HELD_OUT_SEED = 0
T = TypeVar("T")


def load_run_texts(args: RunConfig) -> datasets.Dataset:
    """The texts that the options name."""
    return load_texts(
        args.dataset,
        split=args.split,
        data_args=simple_parse_args_string(args.data_args),
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
    return prepare_windows(
        texts,
        [source.tokenizer for source in sources],
        ctx_len=args.ctx_len,
        chat_format=args.chat_format,
        exclude_tokens=args.exclude_tokens,
        num_proc=args.data_preprocessing_num_proc,
    )


def load_windows(args: RunConfig, sources: list[Source]) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Aligned windows of the run's texts, and what the alignment reports."""
    texts = load_run_texts(args)
    windows = align_texts(args, texts, sources)
    return windows, {"alignment": asdict(alignment_report(windows, len(texts)))}


def split_run_windows(
    args: RunConfig, windows: datasets.Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a run's windows that it trains on, and those that it holds out."""
    num_pairs = sum(windows["num_pairs"][:])
    return split_windows(windows, min(args.held_out_pairs, num_pairs // 10), HELD_OUT_SEED)


def load_run_sources(args: RunConfig, device: torch.device) -> list[Source]:
    """The models that the options name, read where the options say.

    They are on the options' `devices` if they name some. A run may be looked at on another machine
    than it was made on: if one of these is not there, all models are on `device`.
    """
    try:
        devices = [pick_device(name) for name in args.devices]
    except ValueError:
        devices = []
    return load_sources(
        [args.model, *args.partners],
        hookpoints=args.hookpoints,
        layers=args.layers,
        device=device,
        dtype=args.model_dtype,
        revision=args.revision,
        load_in_8bit=args.load_in_8bit,
        token=args.hf_token,
        devices=devices,
        device_map=args.device_map,
    )


def load_artifacts(args: RunConfig, device: torch.device) -> PairedData:
    """Load what a run needs; everything that can be wrong is found before any model is run.

    Sets `args.hookpoints` to one hookpoint per source. In a distributed run the first rank
    prepares the texts and the activation store, and the others read what it wrote.
    """
    world = current_world()
    sources = load_run_sources(args, device)
    args.hookpoints, args.layers = [source.hookpoint for source in sources], []
    widths = [source.width for source in sources]
    coder = get_architecture(args.arch).coder_class
    coder.make_partition(args.sae.resolve_num_latents(widths), widths, args.sae)

    windows, facts = _first_rank_first(lambda: load_windows(args, sources))
    train, held_out = split_run_windows(args, windows)
    counts = torch.tensor(windows["num_pairs"][:])
    args.resolve_schedule(check_length(args, int(counts[train].sum())))

    described = [{"name": s.name, "hookpoint": s.hookpoint, "width": s.width} for s in sources]
    if args.cache is not None:
        path = Path(args.cache)
        store = _first_rank_first(
            lambda: ActivationStore.create(path, sources, windows, batch_size=args.batch_size)
        )
        facts |= {"store": str(path), "harvest": store.report.to_dict()}
        del sources
        gc.collect()

        def stream(rows: torch.Tensor, seed: int) -> StoreStream | LiveStream:
            return StoreStream(
                store, window_rows=rows, seed=seed, rank=world.rank, world_size=world.size
            )
    else:

        def stream(rows: torch.Tensor, seed: int) -> StoreStream | LiveStream:
            return LiveStream(
                sources,
                windows,
                window_rows=rows,
                batch_size=args.batch_size,
                buffer_pairs=args.buffer_pairs,
                seed=seed,
                rank=world.rank,
                world_size=world.size,
            )

    return PairedData(
        stream(train, args.shuffle_seed),
        stream(held_out, HELD_OUT_SEED) if len(held_out) else None,
        described,
        facts,
    )


def load_pairs(args: RunConfig, device: torch.device) -> ActivationStream:
    """All pairs of a run's texts, shuffled: from its store if there is one, or from its models."""
    if args.cache is not None and Path(args.cache).exists():
        return StoreStream(ActivationStore.open(args.cache), seed=args.shuffle_seed)
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
