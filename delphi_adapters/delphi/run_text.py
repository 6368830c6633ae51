"""The texts that a run was trained on, window by window, with all sources' activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparsify_crosscoder.text.window_numbers import window_numbers

if TYPE_CHECKING:
    from datasets import Dataset

    from sparsify_crosscoder.runs.run import Run


@dataclass
class RunText:
    """Windows of aligned tokens, and how to read what the models make of them."""

    windows: Dataset
    """What `prepare_windows` gives: for each source `input_ids_{s}` and `pairs_{s}`."""

    tokenizers: Sequence[Any]
    models: Sequence[str]
    """Name or path of each source's model."""

    hookpoints: Sequence[str]
    """Each source's hookpoint as delphi spells it, with the model's own prefix."""

    read: Callable[[int, int], list[Tensor]]
    """Raw activations at the pairs of windows start..stop, one `[N, d_s]` per source."""

    fingerprint: str
    """Changes with the texts, the tokenizers and how windows are cut."""

    @classmethod
    def of_run(cls, run: Run | Path | str, device: torch.device) -> RunText:
        """The texts of a run, from its store if there is one, or else by running its models.

        Raises FileNotFoundError if a folder holds no run, ValueError if its models, texts or store
        are others now.
        """
        from sparsify_crosscoder.harvest.harvest import harvest_windows
        from sparsify_crosscoder.runs.pairs import run_store
        from sparsify_crosscoder.runs.provenance import load_run_tokenizers
        from sparsify_crosscoder.runs.run import Run
        from sparsify_crosscoder.runs.texts import load_windows

        run = Run.open(run) if isinstance(run, Path | str) else run
        args = run.config
        models = [end.model for end in run.ends]
        hookpoints = [
            delphi_hookpoint(
                end.model,
                end.hookpoint,
                end.revision,
                args.hf_token,
                trust_remote_code=args.trust_remote_code,
            )
            for end in run.ends
        ]
        store = run_store(args)
        if store is not None:
            ends = np.cumsum([0, *window_numbers(store.windows, "num_pairs")])

            def from_store(start: int, stop: int) -> list[Tensor]:
                rows = torch.arange(int(ends[start]), int(ends[stop]))
                return [x.to(device) for x in store.rows(rows)]

            tokenizers = load_run_tokenizers(args, store)
            windows, read = store.windows, from_store
        else:
            sources = run.sources(device)
            windows, _ = load_windows(args, sources)

            def from_models(start: int, stop: int) -> list[Tensor]:
                rows = range(start, stop)
                found = harvest_windows(sources, windows, rows, batch_size=args.batch_size)
                return [x.to(device) for x in found[0]]

            tokenizers = [source.tokenizer for source in sources]
            read = from_models
        return cls(windows, tokenizers, models, hookpoints, read, windows._fingerprint)


def delphi_hookpoint(
    model: str,
    hookpoint: str,
    revision: str | None = None,
    token: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> str:
    """The name of a hookpoint in the whole model, as delphi and `named_modules` spell it.

    sparsify counts from the base model (`layers.15`), which has a name of its own in the model
    with its head (`model.layers.15`).
    """
    from transformers import AutoModelForCausalLM

    from sparsify_crosscoder.harvest.loading import load_config
    from sparsify_crosscoder.harvest.model_name import ModelName

    config = load_config(ModelName(model, revision, token, trust_remote_code))
    with_head = AutoModelForCausalLM._model_mapping.get(type(config), None)  # type: ignore[attr-defined]
    prefix = getattr(with_head, "base_model_prefix", "")
    return f"{prefix}.{hookpoint}" if prefix else hookpoint
