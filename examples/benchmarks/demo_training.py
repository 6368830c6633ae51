"""The demo's training, on whatever pairs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))
from demo import OPTIONS

from sparsify_crosscoder import DFCConfig
from sparsify_crosscoder.config import CrosscoderTrainConfig
from sparsify_crosscoder.store.stream import ActivationStream
from sparsify_crosscoder.training.data import PairedData
from sparsify_crosscoder.training.trainer import DFCTrainer


def train(
    pairs: ActivationStream,
    held_out: ActivationStream | None,
    sources: list[dict[str, Any]],
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
    after_step: Callable[[], None] | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """Train a DFC for `steps` with the demo's options, but for those `changed`; its summary.

    The learning rate falls over the last third, as in the demo. Nothing stays in `folder`.
    """
    options = {**OPTIONS, **changed}
    coder = {name: options.pop(name) for name in ("num_latents", "k")}
    for of_texts in ("max_examples", "ctx_len"):
        del options[of_texts]
    options |= {"max_steps": steps, "lr_decay_steps": steps // 3, "save_every": steps}
    options["epochs"] = -(-(steps + 1) * options["pairs_per_step"] // pairs.num_pairs)
    run = folder / "run"
    cfg = CrosscoderTrainConfig(
        sae=DFCConfig(**coder),
        init_seeds=[seed],
        save_dir=str(folder),
        run_name=run.name,
        **options,
    )
    try:
        trainer = DFCTrainer(cfg, PairedData(pairs, held_out, sources), device)
        return trainer.fit(after_step, show_progress=False)
    finally:
        rmtree(run, ignore_errors=True)
