"""The models of a run: as sources of activations, and each as a place to steer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..hardware import pick_device
from ..harvest.heads import Heads, has_head
from ..harvest.loading import load_config
from ..harvest.model_identity import checkpoint_digest
from ..harvest.model_name import ModelName, name_models
from ..harvest.placement import Placement
from ..harvest.source import Source
from ..harvest.sources import load_language_model, load_sources
from .config import RunConfig
from .provenance import check_models, recorded_revisions


class End(NamedTuple):
    """One of a run's models, as a place to steer."""

    model: str
    revision: str | None
    hookpoint: str
    checkpoint: str | None = None
    """Digest of its checkpoint, where the run recorded one."""


def ends_of(config: RunConfig, sources: Sequence[Mapping[str, Any]]) -> list[End]:
    """The models of a run in the order of its crosscoder's `sources`."""
    names = [config.model, *config.partners]
    hookpoints = [source["hookpoint"] for source in sources]
    checkpoints = [source.get("checkpoint") for source in sources]
    ends = zip(names, run_revisions(config), hookpoints, checkpoints, strict=True)
    return [End(*end) for end in ends]


def without_head(ends: Sequence[End], config: RunConfig) -> str | None:
    """The first of a run's models that says nothing of next tokens; None if all do."""
    for end in ends:
        name = ModelName(end.model, end.revision, config.hf_token, config.trust_remote_code)
        if not has_head(load_config(name)):
            return end.model
    return None


@dataclass(frozen=True)
class Loading:
    """How language models are loaded, and what may be done for it."""

    device: torch.device
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""

    token: str | None = None
    """The hub's, for gated or private models."""

    trust_remote_code: bool = False
    """Whether code that comes with a model may be run."""

    def load(
        self, name: str, revision: str | None = None, checkpoint: str | None = None
    ) -> tuple[Any, Any]:
        """The language model of a name and its tokenizer.

        Raises ValueError if it cannot be loaded, or its checkpoint has another digest than
        `checkpoint`.
        """
        loaded = load_language_model(
            name,
            device=self.device,
            dtype=self.dtype,
            revision=revision,
            token=self.token,
            trust_remote_code=self.trust_remote_code,
        )
        check_model(name, revision, checkpoint)
        return loaded

    def load_end(self, end: End) -> tuple[Any, Any]:
        """A run's model and its tokenizer, as `load`."""
        return self.load(end.model, end.revision, end.checkpoint)


def check_model(name: str, revision: str | None, checkpoint: str | None) -> None:
    """Raise ValueError if a model's checkpoint has another digest; None is any."""
    now = None if checkpoint is None else checkpoint_digest(name, revision)
    if now is not None and now != checkpoint:
        raise ValueError(
            f"'{name}' has other weights or settings now than the model that the run or vector was "
            "made with. Put that model back in its place."
        )


def load_run_sources(config: RunConfig, device: torch.device, heads: Heads = "off") -> list[Source]:
    """The models that the options name, read where the options say, with `heads` if asked for.

    They are on the options' `devices` if they name some. A run may be looked at on another machine
    than it was made on: if one of these is not there, all models are on `device`. Those of a run
    that was begun before are read at the commits that it recorded; raises ValueError if one is
    another model now.
    """
    try:
        devices = [pick_device(name) for name in config.devices]
    except ValueError:
        devices = []
    sources = load_sources(
        name_models(
            [config.model, *config.partners],
            run_revisions(config),
            token=config.hf_token,
            trust_remote_code=config.trust_remote_code,
        ),
        hookpoints=config.hookpoints,
        layers=config.layers,
        placement=Placement(device, devices, config.device_map),
        dtype=config.model_dtype,
        load_in_8bit=config.load_in_8bit,
        heads=heads,
    )
    check_models(config, sources)
    return sources


def run_revisions(config: RunConfig) -> list[str | None]:
    """The revision of each model: the commit that a run recorded, or what the options say."""
    asked = [config.revision, *(config.partner_revisions or [None] * len(config.partners))]
    recorded = recorded_revisions(config) or asked
    return [commit or revision for commit, revision in zip(recorded, asked, strict=True)]
