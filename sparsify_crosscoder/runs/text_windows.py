"""Aligned windows of texts, as a run's options have them."""

from collections.abc import Sequence
from typing import Any

import datasets

from ..text.windows import prepare_windows
from .config import RunConfig


def windows_of(
    config: RunConfig, texts: datasets.Dataset, tokenizers: Sequence[Any]
) -> datasets.Dataset:
    """Windows of any texts, see `prepare_windows`."""
    return prepare_windows(
        texts,
        tokenizers,
        ctx_len=config.ctx_len,
        chat_format=config.chat_format,
        template_tokens=config.template_tokens,
        exclude_tokens=config.exclude_tokens,
        num_proc=config.data_preprocessing_num_proc,
        warn=False,
    )
