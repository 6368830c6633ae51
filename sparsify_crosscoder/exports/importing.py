"""A published crosscoder as a run, which every command reads as one that was trained here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..crosscoders import Crosscoder
from ..crosscoders.checkpoints import save
from ..endings import UsageError
from ..files import atomic_path
from ..hardware import pick_device
from ..registry import get_architecture
from ..runs.config import RunConfig, resolved, run_config_class
from ..runs.pairs import load_training_data
from ..store.normalization import median_norms
from ..store.stream import ActivationStream
from ..training.metrics import evaluate
from ..training.run_folder import RunFolder
from .published_crosscoder import read_published

ARCH = "crosscoder"


@dataclass(frozen=True)
class Imported:
    """A run that was made of a published crosscoder."""

    run: str
    folder: str
    num_latents: int
    pairs: int
    """Held-out pairs of the texts that what follows was measured on."""

    fve_per_source: list[float]
    mean_l0: float
    dead_fraction: float
    """Latents that fire on none of the first pairs ..."""

    dead_window: int
    """... so many."""

    def text(self) -> str:
        """What it is, and whether it fits these models."""
        of_each = " and ".join(f"{fve:.4f}" for fve in self.fve_per_source)
        return (
            f"Imported {self.num_latents:,} latents into '{self.run}': on {self.pairs:,} pairs FVE "
            f"{of_each}, mean L0 {self.mean_l0:.1f}; {self.dead_fraction:.1%} of the latents fire "
            f"on none of {self.dead_window:,} pairs."
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


def import_config(**options: Any) -> RunConfig:
    """The options of a run of the standard crosscoder, given by name; others are left out.

    Raises ValueError for options that do not make sense.
    """
    cls = run_config_class(get_architecture(ARCH))
    return resolved(cls(arch=ARCH, pairs_per_step=1, max_steps=1, log_to_wandb=False, **options))


def import_run(
    folder: str | Path, out: str | Path, config: RunConfig, device: str | None = None
) -> Imported:
    """Make a run of the crosscoder of dictionary_learning in a folder.

    `config` names the models, hookpoints and texts that it is read with from now on; `out` is a new
    folder, whole or not there at all. Its summary is measured on these texts. Raises UsageError if
    `out` exists, if the models' widths are others, and for what cannot be imported.
    """
    started, out = time.monotonic(), Path(out)
    if out.exists() or out.is_symlink():
        raise UsageError(f"'{out}' exists already; name a new folder for the run.")
    published = read_published(Path(folder))
    if len(published.d_sources) != 1 + len(config.partners):
        raise UsageError(
            f"'{folder}' reads {len(published.d_sources)} models, and {1 + len(config.partners)} "
            "are named."
        )
    config.sae = published.config
    config.normalization = "centred" if published.normalized else "none"
    config.save_dir, config.run_name = str(out.absolute().parent), out.name
    data = load_training_data(config, pick_device(device))
    widths = [source["width"] for source in data.sources]
    if widths != published.d_sources:
        raise UsageError(
            f"'{folder}' reads activations of widths {published.d_sources}, and those of the "
            f"models at these hookpoints are {widths}."
        )
    crosscoder = published.crosscoder(data.sources).to(pick_device(device))
    found = _measured(crosscoder, data.train, data.held_out or data.train, config)
    found |= {"wall_seconds": time.monotonic() - started, "data": data.describe()}
    found |= {"imported_from": Path(folder).name, "init_seed": config.init_seeds[0]}
    with atomic_path(out) as temporary:
        made = RunFolder(temporary)
        made.begin(config, 0, resumed=False, trained_on=data.trained_on)
        save(crosscoder, temporary / "+".join(config.hookpoints))
        made.write_summary(found)
    return Imported(
        run=str(out),
        folder=str(folder),
        num_latents=crosscoder.num_latents,
        pairs=found["held_out_pairs"],
        fve_per_source=found["fve_per_source"],
        mean_l0=found["mean_l0"],
        dead_fraction=found["dead_fraction"],
        dead_window=found["dead_window"],
    )


@torch.no_grad()
def _measured(
    crosscoder: Crosscoder, first: ActivationStream, held_out: ActivationStream, config: RunConfig
) -> dict[str, Any]:
    """The summary of a run that no step of was trained here."""
    sample = [x.to(crosscoder.device) for x in first.sample(config.normalization_pairs)]
    crosscoder.median_norms.copy_(median_norms(sample))
    fired = torch.zeros(crosscoder.num_latents, dtype=torch.bool)
    for some in zip(*(x.float().split(1024) for x in sample), strict=True):
        fired[crosscoder.encode_sparse(list(some)).indices.cpu()] = True
    sources = len(crosscoder.d_sources)
    counts = torch.histc(crosscoder.relative_decoder_norm().float().cpu(), 50, 0, 1)
    return {
        "arch": crosscoder.arch,
        **evaluate(crosscoder, held_out, config.outlier_multiple),
        "dead_fraction": 1 - float(fired.float().mean()),
        "dead_fraction_exclusive": [None] * sources,
        "dead_window": len(sample[0]),
        "exclusive_latents": [None] * sources,
        "pairs": 0,
        "steps": 0,
        "num_latents": crosscoder.num_latents,
        "k": crosscoder.cfg.k,
        "partition": crosscoder.partition.sizes,
        "sources": crosscoder.sources,
        "relative_decoder_norm": {
            "edges": torch.linspace(0, 1, 51).tolist(),
            "counts": [int(count) for count in counts],
        },
        "dropped_in_training": {},
    }
