"""The texts of a run, and their aligned windows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..harvest.limits import check_windows
from ..harvest.source import Source
from ..store.manifest import is_store, read_manifest
from ..store.order import split_windows
from ..text.alignment_report import alignment_report
from ..text.lent_templates import lend_template
from ..text.loss_reasons import warn_of_loss
from ..text.templates import TEMPLATE_DATE
from ..text.text_loss import measure_loss
from ..text.texts import load_texts
from ..text.tokenization import source_tokenizers
from ..text.window_numbers import window_numbers
from ..world import current_world
from .answers import answers_report, with_answers
from .config import RunConfig
from .provenance import check_texts
from .text_windows import windows_of

HELD_OUT_SEED = 0
_PROBED_TEXTS = 2048

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
    "answers",
    "answer_tokens",
    "answer_seed",
    "template_tokens",
    "chat_template_from",
    "exclude_tokens",
    "pairs",
)


def text_options(config: RunConfig) -> RunConfig:
    """The options that say which texts a run reads; of one from a store, those of the harvest.

    Raises ValueError for a store of several harvests.
    """
    if not is_store(config.dataset):
        return config
    manifest = read_manifest(Path(config.dataset))
    assert manifest is not None
    origins = [part["origin"] for part in manifest["parts"]]
    if len(origins) > 1 or origins[0] is None:
        raise ValueError(
            f"The texts of the store '{config.dataset}' cannot be read again: it was not made by "
            "one `sparsify-crosscoder harvest`."
        )
    of_harvest = copy.copy(config)
    for name in TEXT_OPTIONS:
        # Earlier versions did not have all of these options.
        setattr(of_harvest, name, origins[0].get(name, getattr(RunConfig, name, None)))
    of_harvest.cache = config.dataset
    return of_harvest


def load_run_texts(config: RunConfig) -> datasets.Dataset:
    """The texts that the options name, conversations with the models' answers where these are asked
    for."""
    config = text_options(config)
    texts = load_own_texts(config)
    return texts if config.answers == "none" else with_answers(config, texts)


def load_own_texts(config: RunConfig) -> datasets.Dataset:
    """The texts that the options name as they are in their data sets."""
    return load_texts(
        config.dataset,
        split=config.split,
        data_args=config.data_args,
        text_column=config.text_column,
        extra_datasets=config.extra_datasets,
        weights=config.dataset_weights,
        max_examples=config.max_examples,
        shuffle_seed=config.shuffle_seed,
    )


def align_texts(
    config: RunConfig, texts: datasets.Dataset, sources: list[Source]
) -> datasets.Dataset:
    """Aligned windows of any texts, made as the run's own are."""
    config = text_options(config)
    return windows_of(config, texts, text_tokenizers(config, sources))


def text_tokenizers(config: RunConfig, sources: Sequence[Source]) -> list[Any]:
    """The tokenizers of a run's models, with the chat templates that its texts are read with."""
    tokenizers = [source.tokenizer for source in sources]
    lend_template(tokenizers, config.chat_template_from)
    return tokenizers


def load_windows(
    config: RunConfig, sources: list[Source]
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Aligned windows of the run's texts, and what the alignment reports.

    With --pairs, those of the first texts that give so many. Warns where much of what the texts say
    is in no pair. Raises ValueError if all texts give fewer, for windows that a model cannot read,
    and if a run that was begun before has read other ones.
    """
    config = text_options(config)
    texts = load_run_texts(config)
    num_texts = len(texts)
    if config.pairs is None:
        windows = align_texts(config, texts, sources)
    else:
        windows = _enough_windows(config, texts, sources, config.pairs)
        num_texts = windows[-1]["text_id"] + 1
        texts = texts.select(range(num_texts))
    check_windows(sources, windows)
    check_texts(config, windows)
    tokenizers = source_tokenizers(text_tokenizers(config, sources))
    loss = measure_loss(texts, windows, tokenizers, config.chat_format)
    if current_world().rank == 0:
        warn_of_loss(loss, texts, tokenizers, config.chat_format, config.exclude_tokens)
    report = asdict(alignment_report(windows, num_texts, loss))
    facts = {"alignment": report, "template_date": TEMPLATE_DATE}
    if config.answers != "none":
        facts["answers"] = answers_report(config)
    return windows, facts


def _enough_windows(
    config: RunConfig, texts: datasets.Dataset, sources: list[Source], pairs: int
) -> datasets.Dataset:
    """Windows of whole texts from the first on, until they have `pairs` pairs."""
    count = min(_PROBED_TEXTS, len(texts))
    while True:
        windows = align_texts(config, texts.select(range(count)), sources)
        ends = np.cumsum(window_numbers(windows, "num_pairs"))
        if ends[-1] >= pairs:
            text_ids = window_numbers(windows, "text_id")
            last = text_ids[np.searchsorted(ends, pairs)]
            return windows.select(range(int(np.searchsorted(text_ids, last, side="right"))))
        if count == len(texts):
            raise ValueError(
                f"All {count:,} texts give {ends[-1]:,} pairs, fewer than the {pairs:,} that "
                "--pairs asks for: add --extra_datasets, or ask for fewer."
            )
        count = min(max(int(1.05 * count * pairs / ends[-1]), count + 1), len(texts))


def split_run_windows(
    config: RunConfig, windows: datasets.Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a run's windows that it trains on, and those that it holds out."""
    num_pairs = int(window_numbers(windows, "num_pairs").sum())
    return split_windows(windows, min(config.held_out_pairs, num_pairs // 10), HELD_OUT_SEED)
