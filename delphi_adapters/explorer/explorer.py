"""What the explorer's page asks of a run: a sentence read by both models, a latent, and steering.

Nothing here knows of a page. S sources, P pairs of a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from datasets import Dataset

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.top import (
    LatentReport,
    Occurrences,
    check_latents,
    collect_occurrences,
    describe_latents,
    source_labels,
)
from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.hookpoints import try_hookpoint
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.interventions.generation import Answering, Sampling, generate
from sparsify_crosscoder.interventions.targets import Target, TargetOptions, latent_targets
from sparsify_crosscoder.runs.models import without_head
from sparsify_crosscoder.runs.pairs import first_pairs
from sparsify_crosscoder.runs.run import Run
from sparsify_crosscoder.text.alignment import align_tokens

from .audited import Audited

MOST_CHARACTERS = 4000
"""Of a sentence; longer ones are refused."""


@dataclass(frozen=True)
class Active:
    """A latent at a pair of tokens."""

    latent: int
    block: str
    activation: float


@dataclass(frozen=True)
class ReadPair:
    """A stretch of text that ends where all models end a token."""

    tokens: list[list[str]]
    """Each source's tokens in the stretch; tokens that are in no pair stand before the next one."""

    latents: list[Active]
    """The strongest of each partition block, in the blocks' order."""


@dataclass(frozen=True)
class LatentView:
    """What is known of a latent."""

    report: LatentReport
    """Where it fires, from the run's first pairs."""

    facts: list[tuple[str, str]]
    """What an audit found, empty without one."""

    coherent: float | None
    """The largest strength at which an audit's steered answers were text, if it measured that."""


@dataclass(frozen=True)
class SteeredText:
    """One model's continuation without and with a latent."""

    model: str
    before: str
    after: str
    refused: str | None = None
    """Why the model cannot be steered with it; the texts are empty then."""


class Explorer:
    """A run with its models loaded, and an audit of it where there is one.

    Raises ValueError for models that are not there, are others now, or write no text.
    """

    def __init__(
        self,
        run: Run,
        audited: Audited | None = None,
        *,
        pairs: int = 20_000,
        device: str | torch.device | None = None,
    ):
        self.run, self.audited, self.pairs, self.device = run, audited, pairs, device
        self.crosscoder: Crosscoder = run.crosscoder(device=device)
        headless = without_head(run.ends, run.config)
        if headless is not None:
            raise ValueError(
                f"'{headless}' is no causal language model, so that it cannot be steered; the "
                "explorer needs a run of models that write text."
            )
        loading = run.loading(device)
        self.models: list[tuple[Any, Any]] = []
        for number, end in enumerate(run.ends):
            same = run.ends.index(end._replace(hookpoint=end.hookpoint))
            self.models.append(self.models[same] if same < number else loading.load_end(end))
        self.labels = source_labels(self.crosscoder)
        self._lock = Lock()

    @cached_property
    def sources(self) -> list[Source]:
        """The models as they are read."""
        found = []
        for (model, tokenizer), end, width in zip(
            self.models, self.run.ends, self.crosscoder.d_sources, strict=True
        ):
            base = model.base_model
            try_hookpoint(base, end.hookpoint, name=end.model)
            found.append(Source(end.model, end.hookpoint, base, tokenizer, width))
        return found

    @cached_property
    def occurrences(self) -> Occurrences:
        """Every activation over the run's first pairs."""
        first = first_pairs(self.run.config, self.pairs, self._device)
        self._windows, self._tokenizers = first.windows, first.tokenizers
        multiple = self.run.config.outlier_multiple
        return collect_occurrences(self.crosscoder, first.chunks, multiple)

    @cached_property
    def largest(self) -> torch.Tensor:
        """Each latent's largest activation over these, `[M]`."""
        found = self.occurrences
        largest = torch.zeros(self.crosscoder.num_latents)
        return largest.scatter_reduce_(0, found.latents, found.acts, "amax")

    def read(self, sentence: str, strongest: int = 3) -> list[ReadPair]:
        """Both models' tokens of a sentence, with the strongest latents of each block at each pair.

        Pairs are those of the run's own texts: without its excluded tokens and the first token of
        either model. Raises ValueError for a sentence that is empty, too long, or has no pair.
        """
        if not sentence.strip():
            raise ValueError("Type a sentence first.")
        if len(sentence) > MOST_CHARACTERS:
            raise ValueError(f"A sentence has at most {MOST_CHARACTERS:,} characters here.")
        aligned = align_tokens(sentence, [source.tokenizer for source in self.sources])
        excluded = set(self.run.config.exclude_tokens)
        kept = [
            pair
            for pair, places in enumerate(zip(*aligned.indices, strict=True))
            if min(places) > 0 and aligned.input_ids[0][places[0]] not in excluded
        ]
        if not kept:
            raise ValueError("No token of this sentence can be paired; type a longer one.")
        window: dict[str, Any] = {"text_id": [0]}
        for s in range(len(self.sources)):
            window[f"input_ids_{s}"] = [aligned.input_ids[s]]
            window[f"pairs_{s}"] = [[aligned.indices[s][pair] for pair in kept]]
        with self._lock, torch.inference_mode():
            raw, _ = harvest_windows(self.sources, Dataset.from_dict(window), [0], batch_size=1)
            dense = self.crosscoder.encode_sparse([x.to(self._device) for x in raw]).to_dense()
        dense = dense.float().cpu()
        found, begins = [], [0] * len(self.sources)
        for row in range(len(kept)):
            tokens = []
            for s, source in enumerate(self.sources):
                stop = window[f"pairs_{s}"][0][row] + 1
                tokens.append(_spelled(source.tokenizer, aligned.input_ids[s][begins[s] : stop]))
                begins[s] = stop
            found.append(ReadPair(tokens, self._strongest(dense[row], strongest)))
        return found

    def latent(self, latent: int, snippets: int = 5) -> LatentView:
        """Where a latent fires, and what an audit says of it; ValueError if there is none such."""
        check_latents(self.crosscoder, [latent])
        with self._lock:
            found = self.occurrences
            (report,) = describe_latents(
                self.crosscoder, found, [latent], self._windows, self._tokenizers, snippets
            )
        if self.audited is None:
            return LatentView(report, [], None)
        return LatentView(report, self.audited.facts(latent), self.audited.coherent(latent))

    def steer(
        self, latent: int, strength: float, prompt: str, tokens: int = 40
    ) -> list[SteeredText]:
        """Each model's likeliest continuation of a prompt, before and after; no judge is asked.

        A strength of 1 adds what the latent writes at its largest activation over the run's first
        pairs. A model that the latent does not write to is steered by an audit's stitching, or by
        the identity where both share a basis; else its text says why not. Raises ValueError for a
        prompt that is empty and for a latent that there is not or that never fires.
        """
        check_latents(self.crosscoder, [latent])
        if not prompt.strip():
            raise ValueError("Type what the models are to continue first.")
        with self._lock:
            if not self.largest[latent] > 0:
                raise ValueError(
                    f"Latent {latent} never fires on the first {self.pairs:,} pairs of the run, so "
                    "there is no strength to steer with; start with more --pairs."
                )
            return [
                self._steered(s, latent, strength, prompt, tokens) for s in range(len(self.models))
            ]

    def _steered(
        self, source: int, latent: int, strength: float, prompt: str, tokens: int
    ) -> SteeredText:
        model, tokenizer = self.models[source]
        target = self._target(source, latent)
        if isinstance(target, str):
            return SteeredText(self.labels[source], "", "", target)
        found = generate(
            model,
            prompt,
            target.steering,
            [0.0, strength],
            Sampling(max_new_tokens=tokens),
            tokenizer=tokenizer,
            answering=Answering(),
        )
        before, after = found.texts()
        return SteeredText(self.labels[source], before, after)

    @lru_cache(maxsize=256)  # noqa: B019  # one explorer lives as long as its process
    def _target(self, source: int, latent: int) -> Target | str:
        stitching: Path | None = None
        writes = bool(self.crosscoder.decoder_norms()[latent, source] > 0)
        if self.audited is not None and not writes:
            stitching = self.audited.stitching
        asked = TargetOptions(source=source, stitching=stitching, s_max=float(self.largest[latent]))
        try:
            return latent_targets(self.run, [latent], asked, self.device).targets[0]
        except ValueError as error:
            return str(error)

    def _strongest(self, acts: torch.Tensor, count: int) -> list[Active]:
        found = []
        for block in self.crosscoder.partition.blocks:
            values, indices = acts[block.start : block.stop].topk(
                min(count, block.stop - block.start)
            )
            found += [
                Active(block.start + index, block.name, value)
                for value, index in zip(values.tolist(), indices.tolist(), strict=True)
                if value > 0
            ]
        return found

    @property
    def _device(self) -> torch.device:
        return self.crosscoder.device


def _spelled(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([one]) for one in ids]
