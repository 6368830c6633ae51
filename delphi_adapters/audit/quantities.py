"""How large the models of an audit are and what this machine does in a second, for estimates.

Times are computed: operations and bytes of a stage over what this device does of them in a short
trial. They say whether to wait minutes or days; a stage that was done says what it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModel

from sparsify_crosscoder.harvest.heads import has_head, share_vocabulary
from sparsify_crosscoder.harvest.loading import load_config, load_tokenizer
from sparsify_crosscoder.harvest.model_name import ModelName
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.runs.models import run_revisions
from sparsify_crosscoder.runs.texts import load_own_texts
from sparsify_crosscoder.text.answers import wanted_texts
from sparsify_crosscoder.text.lent_templates import lend_template
from sparsify_crosscoder.text.roles import NO_WRITER
from sparsify_crosscoder.text.window_numbers import window_numbers
from sparsify_crosscoder.text.windows import prepare_windows

from ..clients.machine_speed import bytes_per_second, operations_per_second

PROBED_TEXTS = 64
EFFICIENCY = 0.5  # of a large product, which the parts of a model reach


@dataclass(frozen=True)
class ModelSize:
    """What one model takes: parameters up to its hookpoint, in all, and of its unembedding."""

    read: int
    whole: int
    unembedding: int


class Quantities:
    """Of a run's models, before anything of them is loaded.

    Args:
        config: what the run is trained with.
        device: what works.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device

    @cached_property
    def flops(self) -> float:
        """Operations a second of a large product in the models' precision."""
        return operations_per_second(self.device)

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that are read and written."""
        return bytes_per_second(self.device)

    def seconds(self, operations: float, read: float = 0.0) -> float:
        """That so many operations, and bytes that are read besides, take."""
        return operations / (self.flops * EFFICIENCY) + read / self.bandwidth

    def writing(self, tokens: int, steps: float, passes: int = 1) -> float:
        """Seconds in which both models write so many tokens in so many steps.

        Each step reads a model once, whatever the number of rows; `passes` counts the reading of
        what was written.
        """
        return sum(
            self.seconds(tokens * passes * 2 * one.whole, steps * 2 * one.whole)
            for one in self.models
        )

    @cached_property
    def models(self) -> list[ModelSize]:
        return [
            _size(config, self.config.hookpoints[s] if self.config.hookpoints else None)
            for s, config in enumerate(self._configs)
        ]

    @cached_property
    def widths(self) -> list[int]:
        return [config.get_text_config().hidden_size for config in self._configs]

    @cached_property
    def to_the_end(self) -> bool:
        """Whether a harvest runs the models to their ends, and their heads, for the KL."""
        if self.config.kl != "auto":
            return self.config.kl == "on"
        tokenizers = [load_tokenizer(name) for name in self._names]
        return share_vocabulary(tokenizers) and all(map(has_head, self._configs))

    def tokens_to_answer(self) -> int:
        """Most tokens of the answers that the models are to write.

        Where --pairs bounds the text, as many as make that, if answers alone were paired.
        """
        config = self.config
        texts = load_own_texts(config)
        wanted = wanted_texts(texts, config.answers, len(self._names))
        answers = sum(one.writer != NO_WRITER for one in wanted)
        most = answers * config.answer_tokens
        return most if config.pairs is None else min(most, config.pairs)

    def pairs_of_texts(self) -> int:
        """Pairs of the texts, told from a sample of them as it is in the data set."""
        config, texts = self.config, load_own_texts(self.config)
        probe = texts.select(range(min(PROBED_TEXTS, len(texts))))
        tokenizers = [load_tokenizer(name) for name in self._names]
        lend_template(tokenizers, config.chat_template_from)
        windows = prepare_windows(
            probe,
            tokenizers,
            ctx_len=config.ctx_len,
            chat_format=config.chat_format,
            template_tokens=config.template_tokens,
            exclude_tokens=config.exclude_tokens,
        )
        return round(int(window_numbers(windows, "num_pairs").sum()) * len(texts) / len(probe))

    @cached_property
    def _configs(self) -> Sequence[Any]:
        return [load_config(name) for name in self._names]

    @property
    def _names(self) -> list[ModelName]:
        config, names = self.config, [self.config.model, *self.config.partners]
        return [
            ModelName(name, revision, config.hf_token, config.trust_remote_code)
            for name, revision in zip(names, run_revisions(config), strict=True)
        ]


def _size(config: Any, hookpoint: str | None) -> ModelSize:
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    whole = sum(parameter.numel() for parameter in model.parameters())
    layers = config.get_text_config().num_hidden_layers
    place = hookpoint or f"layers.{layers // 2}"
    depth = next((int(p) for p in place.split(".") if p.isdecimal()), layers - 1) + 1
    embedding = model.get_input_embeddings().weight.numel()
    return ModelSize(int((whole - embedding) * depth / layers), whole, embedding)
