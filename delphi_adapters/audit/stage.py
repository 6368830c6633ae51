"""A stage of an audit, and what it is given: the audit's options, models and earlier outputs.

A stage is one file: a subclass of `Stage`, with a dataclass of its options, whose fields become
options of the command and whose docstrings are their help (`sparsify_crosscoder.command_options`).
An installed package offers it by one entry point in the group `delphi_adapters.stages`, whose name
is the stage's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .outcome import Cost, Outcome
from .runner import Record

if TYPE_CHECKING:
    import torch

    from sparsify_crosscoder.crosscoders import Crosscoder
    from sparsify_crosscoder.runs.config import RunConfig
    from sparsify_crosscoder.runs.run import Run

    from .config import AuditConfig
    from .judge import AuditJudge
    from .quantities import Quantities

O = TypeVar("O")  # noqa: E741
T = TypeVar("T")

BEGINNING = "where to begin"
TEXTS = "cache and filter"
JUDGE = "judge"
VERIFICATION = "verification by steering (B.5)"
GROUPS = (BEGINNING, TEXTS, JUDGE, VERIFICATION)
"""Headings of the command's options, in order; those of other packages' stages follow."""


@dataclass
class NoOptions:
    """Of a stage that has none."""


class Stage(ABC, Generic[O, T]):
    """One step of an audit, with options `O` and the output `T` that later stages ask for."""

    name: ClassVar[str]
    """What `--until` and its folder call it."""

    what: ClassVar[str]
    """What comes of it, in a line."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Stages whose outputs it reads; what these read counts as well."""

    after: ClassVar[tuple[str, ...]] = ()
    """Stages that come before it although it reads nothing of them."""

    needs_judge: ClassVar[bool] = False
    """Whether nothing is left to do where there is no judge."""

    Options: ClassVar[type] = NoOptions
    """A dataclass whose `__post_init__` raises ValueError for what makes no sense."""

    group: ClassVar[str | None] = None
    """Heading of its options; None: its name."""

    def __init__(self, options: O):
        self.options = options

    def check(self, *, judged: bool) -> None:
        """Raise ValueError where the options do not go with there being a judge, or none."""

    def outside(self) -> dict[str, Any]:
        """Of files that its options name, what is quick to tell, as `fingerprint_path` does."""
        return {}

    @abstractmethod
    def inputs(self, ctx: Context) -> dict[str, Any]:
        """JSON values: the options that change its outputs. It is done anew where they change."""

    def estimate(self, ctx: Context) -> Cost:
        """What it would take."""
        return Cost()

    @abstractmethod
    def run(self, ctx: Context, folder: Path) -> Outcome:
        """Do it, or go on with what an attempt that was stopped left in the folder."""

    def output(self, ctx: Context, folder: Path, record: Record) -> T:
        """What later stages are given of it, from its folder and record.

        Raises LookupError for a stage that gives nothing to others.
        """
        raise LookupError(f"The stage '{self.name}' gives nothing to others.")


class Context:
    """An audit: its options, its folder and what its stages came to.

    Args:
        config: of the audit.
        stages: all of them, in order.
        client: a judge to ask instead of the one that `config` names.
    """

    def __init__(self, config: AuditConfig, stages: Sequence[Stage[Any, Any]], client: Any = None):
        self.config, self.stages = config, list(stages)
        self.out = Path(config.out).resolve()
        self.records: dict[str, Record] = {}
        self._client = client
        self._outputs: dict[str, Any] = {}

    # Stages

    def options(self, kind: type[O]) -> O:
        """The options of a stage, by their class. Raises LookupError where no stage has them."""
        for stage in self.stages:
            if isinstance(stage.options, kind):
                return stage.options
        raise LookupError(f"This audit has no stage with {kind.__name__}.")

    def folder(self, kind: type[Stage[Any, Any]]) -> Path:
        """Where a stage keeps its outputs."""
        return self.out / kind.name

    def output(self, kind: type[Stage[Any, T]]) -> T:
        """What a stage that is done gives to later ones; read once."""
        name = kind.name
        if name not in self._outputs:
            (stage,) = (one for one in self.stages if isinstance(one, kind))
            self._outputs[name] = stage.output(self, self.out / name, self.records[name])
        return self._outputs[name]

    def done(self, stage: Stage[Any, Any], record: Record) -> None:
        """Note what a stage came to."""
        self.records[stage.name] = record
        self._outputs.pop(stage.name, None)

    # The judge

    @property
    def judged(self) -> bool:
        """Whether there is a judge to ask."""
        return self.config.judged

    @cached_property
    def judge(self) -> AuditJudge:
        """Who is asked."""
        from .judge import AuditJudge

        return AuditJudge(self.config.judge, self.out, self.device, client=self._client)

    # The run

    @cached_property
    def training(self) -> RunConfig:
        """What the run was trained with, or will be, with the texts that are harvested.

        The process exits with 2 where options of training do not make sense.
        """
        if self.config.run is not None:
            return self.run.config
        from sparsify_crosscoder.runs.options import parse_run_config
        from sparsify_crosscoder.store.manifest import is_store

        model, partner = self.config.models
        argv = [model, self.config.dataset, "--partners", partner, *self.config.train]
        if self.config.hf_token is not None:
            argv += ["--hf_token", self.config.hf_token]
        if self.config.trust_remote_code:
            argv += ["--trust_remote_code"]
        if not is_store(self.config.dataset):
            argv += ["--cache", str(self.out / "harvest" / "store")]
        options = parse_run_config(argv)
        given = {token.partition("=")[0] for token in self.config.train}
        if "--answers" not in given and not is_store(self.config.dataset):
            from .answers import default_answers

            options.answers = default_answers(options)
        return options

    @cached_property
    def device(self) -> torch.device:
        from sparsify_crosscoder.hardware import pick_device

        return pick_device(None if self.config.run is not None else self.training.device)

    @cached_property
    def run(self) -> Run:
        """The run that was given, or the audit's own once it is there."""
        from sparsify_crosscoder.runs.run import Run

        return Run.open(
            self.config.run.resolve() if self.config.run else self.out / "train" / "run",
            token=self.config.hf_token,
            trust_remote_code=self.config.trust_remote_code,
        )

    @property
    def trained(self) -> bool:
        """Whether there is a run to look at."""
        return self.config.run is not None or "train" in self.records

    @cached_property
    def crosscoder(self) -> Crosscoder:
        return self.run.crosscoder(device=self.device)

    @cached_property
    def quantities(self) -> Quantities:
        """How large the models are and how fast this machine is, for estimates."""
        from .quantities import Quantities

        return Quantities(self.training, self.device)

    def language_model(self, source: int) -> tuple[Any, Any]:
        """One of the models with its head, and its tokenizer."""
        return self.run.loading(self.device).load_end(self.run.ends[source])

    def model_name(self, source: int) -> str:
        """What one of the models is called, unlike the other."""
        from sparsify_crosscoder.harvest.model_identity import short_names

        return short_names([end.model for end in self.run.ends])[source]
