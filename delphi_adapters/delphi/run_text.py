"""The texts that a run was trained on, window by window, with all sources' activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset


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
    def of_run(
        cls,
        run: Path,
        device: torch.device,
        token: str | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> RunText:
        """The texts of a run, from its store if there is one, or else by running its models.

        `token` is the hub's. Raises FileNotFoundError if the folder holds no run, ValueError if
        its models, texts or store are others now.
        """
        from sparsify_crosscoder.crosscoders import Crosscoder
        from sparsify_crosscoder.harvest.harvest import harvest_windows
        from sparsify_crosscoder.runs.config import load_run_config
        from sparsify_crosscoder.runs.models import load_run_sources, run_revisions
        from sparsify_crosscoder.runs.pairs import run_store
        from sparsify_crosscoder.runs.provenance import load_run_tokenizers
        from sparsify_crosscoder.runs.texts import load_windows

        args = load_run_config(run, token, trust_remote_code=trust_remote_code)
        described = Crosscoder.load_one(run).sources
        models = [args.model, *args.partners]
        hookpoints = [
            delphi_hookpoint(
                model,
                source["hookpoint"],
                revision,
                token,
                trust_remote_code=trust_remote_code,
            )
            for model, source, revision in zip(models, described, run_revisions(args), strict=True)
        ]
        store = run_store(args)
        if store is not None:
            ends = np.cumsum([0, *store.windows["num_pairs"]])

            def from_store(start: int, stop: int) -> list[Tensor]:
                rows = torch.arange(int(ends[start]), int(ends[stop]))
                return [x.to(device) for x in store.rows(rows)]

            tokenizers = load_run_tokenizers(args, store)
            windows, read = store.windows, from_store
        else:
            sources = load_run_sources(args, device)
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
