"""A run folder as an object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset

from ..crosscoders import Crosscoder
from ..crosscoders.checkpoints import own_crosscoders, read_config
from ..hardware import pick_device
from ..harvest.source import Source
from ..store.stream import ActivationStream
from .config import RunConfig, load_run_config
from .models import End, Loading, ends_of, load_run_sources
from .pairs import FirstPairs, first_pairs, load_pairs
from .summary import RunSummary, read_summary
from .texts import load_run_texts


@dataclass(frozen=True)
class Run:
    """A crosscoder that was trained, and the models and texts that it was trained on.

    What is loaded is the run's own: models, texts and stores that have changed since are refused
    with ValueError. `device` is a name or a device; None is the best that there is.
    """

    path: Path
    config: RunConfig
    """The options that the run was started with."""

    @classmethod
    def open(
        cls, path: str | Path, *, token: str | None = None, trust_remote_code: bool = False
    ) -> Run:
        """The run in a folder.

        `token` is the hub's, and `trust_remote_code` lets the code that comes with a model run: no
        run keeps either. Raises FileNotFoundError if the folder holds no run, Damaged for options
        that are none.
        """
        folder = Path(path)
        return cls(folder, load_run_config(folder, token, trust_remote_code=trust_remote_code))

    def crosscoder(
        self, seed: int | None = None, device: str | torch.device | None = "cpu"
    ) -> Crosscoder:
        """The run's newest crosscoder, of several that with the initialisation `seed`."""
        return Crosscoder.load_one(self.path, seed, pick_device(device))

    def pairs(self, device: str | torch.device | None = None) -> ActivationStream:
        """All pairs of activations, shuffled: from the run's store if there is one, or from its
        models."""
        return load_pairs(self.config, pick_device(device))

    def first_pairs(self, count: int, device: str | torch.device | None = None) -> FirstPairs:
        """The first pairs in the order of the texts, with the windows that they are from."""
        return first_pairs(self.config, count, pick_device(device))

    def texts(self) -> Dataset:
        """The texts that the run was trained on, those that it held out among them."""
        return load_run_texts(self.config)

    def sources(self, device: str | torch.device | None = None) -> list[Source]:
        """The models, read at the run's hookpoints."""
        return load_run_sources(self.config, pick_device(device))

    @cached_property
    def ends(self) -> list[End]:
        """The models as places to steer, in the order of the crosscoder's sources."""
        names = own_crosscoders(self.path)
        described = read_config(self.path / names[0] if names else self.path)
        return ends_of(self.config, described["sources"])

    def loading(
        self, device: str | torch.device | None = None, dtype: str | None = None
    ) -> Loading:
        """How the run's models are loaded with their heads; `dtype` is the run's if left out."""
        config = self.config
        dtype = config.model_dtype if dtype is None else dtype
        return Loading(pick_device(device), dtype, config.hf_token, config.trust_remote_code)

    def summary(self) -> RunSummary:
        """What the run came to; raises FileNotFoundError for one that is not finished."""
        return read_summary(self.path)
