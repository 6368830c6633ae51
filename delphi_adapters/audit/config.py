"""What an audit is asked for: of what, where, by whom, and the options of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..clients.judge import NO_JUDGE, JudgeConfig

DATASET = "EleutherAI/SmolLM2-135M-10B"
OUT = Path("runs/audit")


@dataclass(frozen=True)
class AuditConfig:
    """An audit of two models, or of a run that is trained already.

    Raises ValueError for what makes no sense together.
    """

    models: Sequence[str] = ()
    """Names or folders of two models; none with `run`."""

    run: Path | None = None
    """A trained run, instead of the two models."""

    dataset: str = DATASET
    """Text that both models read, as of `sparsify`, or an activation store."""

    train: Sequence[str] = ()
    """Options of training, as on the command line of `sparsify`."""

    out: Path = OUT
    """Its folder."""

    hf_token: str | None = None
    """The hub's."""

    trust_remote_code: bool = False
    """Whether code that comes with a model may be run."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    stages: Mapping[str, Any] = field(default_factory=dict)
    """Options of stages by the stages' names; those that are left out have their defaults."""

    def __post_init__(self):
        if self.run is None and len(self.models) != 2:
            raise ValueError("name the two models: audit MODEL_A MODEL_B, or a trained --run.")
        if self.run is not None and (self.models or self.train):
            raise ValueError(
                "--run is trained already: leave out the models and options of training."
            )
        self.judge.check()

    @property
    def judged(self) -> bool:
        """Whether there is a judge to ask."""
        return self.judge.judge != NO_JUDGE

    @property
    def judge_inputs(self) -> dict[str, Any]:
        """What of the judge changes its answers."""
        found = {name: getattr(self.judge, name) for name in ("judge", "provider", "max_tokens")}
        elsewhere = self.judge.base_url
        return found if elsewhere is None else {**found, "base_url": elsewhere}
