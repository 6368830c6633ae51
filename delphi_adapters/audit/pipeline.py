"""An audit from its options to its report: each stage that is missing or changed is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sparsify_crosscoder import __version__
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json

from ..clients.stopping import Stopped
from .config import AuditConfig
from .runner import Record, bring_up, fingerprint_path, fingerprint_run, state
from .stage import Context, Stage
from .stage_list import make_stages

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.latent_card import LatentCard

DONE = "audit.json"
REPORT = "report.html"
TABLE = "features.parquet"
FIRST = "report/first.txt"
_NOT_ASKED = ("device", "structured", "trust_remote_code")

Stages = Sequence[Stage[Any, Any]]


@dataclass(frozen=True)
class AuditResult:
    """What an audit came to."""

    folder: Path
    stages: Mapping[str, Record]
    """What there is of each stage that was wanted, in order."""

    stopped: str | None = None
    """Why it was stopped, if it was: a budget, or somebody. Called again, it goes on."""

    @property
    def report(self) -> Path | None:
        """The report's page, once it is written."""
        record = self.stages.get("report")
        return self.folder / REPORT if record is not None and record.finished else None

    @property
    def first(self) -> str | None:
        """What stands first in the report, in plain words, once it is written."""
        file = self.folder / FIRST
        if self.report is None or not file.exists():  # nor did earlier versions write it
            return None
        return file.read_text(encoding="utf-8")

    def card(self, latent: int) -> LatentCard:
        """What is known of a latent, once the report is written.

        Raises FileNotFoundError before that, ValueError for a latent that there is none of.
        """
        from ..explaining.features import read_card

        return read_card(self.folder / TABLE, latent)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        stages = {
            name: {"finished": record.finished, "seconds": record.seconds, **record.result}
            for name, record in self.stages.items()
        }
        return {"out": str(self.folder), "stages": stages, "stopped": self.stopped}

    def text(self) -> str:
        """What stands first in the report, and where things are."""
        seconds = sum(record.seconds for record in self.stages.values())
        lines = "" if self.first is None else f"\n{self.first}"
        lines += f"\n{len(self.stages)} stages in '{self.folder}', {seconds:,.0f} s of work in all."
        if self.report is not None:
            lines += f"\nThe report: {self.report}; the tables: features.parquet, report.md."
        return lines


def run_audit(config: AuditConfig, until: str | None = None, client: Any = None) -> AuditResult:
    """Do what is missing or changed up to a stage, or all of it.

    `client` is asked instead of the judge that `config` names. Raises ValueError for options that
    make no sense.
    """
    stages = make_stages(config)
    wanted = up_to(stages, until)
    asked = asked_for(config, stages)
    if _nothing_to_do(config.out, asked, [stage.name for stage in wanted]):
        print(f"Nothing to do: every stage up to {wanted[-1].name} is there, from the same inputs.")
        return _found(config.out, wanted)
    print(f"Audit in '{config.out}': loading ...", flush=True)
    ctx = Context(config, stages, client)
    stopped: str | None = None
    for number, stage in enumerate(wanted, 1):
        inputs = inputs_of(ctx, stage)
        found = state(ctx.out / stage.name, inputs)
        print(f"\n[{number}/{len(stages)}] {stage.name}: {stage.what} ({found})", flush=True)
        try:
            record = bring_up(stage.name, ctx.out, inputs, lambda f, s=stage: s.run(ctx, f))
        except Stopped as reason:
            stopped = str(reason)
            break
        ctx.done(stage, record)
        if record.unfinished:
            reason = f"{stage.name}: {record.unfinished}; the same command asks again."
            print(reason, file=sys.stderr)
    if stopped is None:
        before = _done(config.out)
        same = before.get("stages", []) if before.get("asked") == asked else []
        there = {*(stage.name for stage in wanted), *same}
        listed = [stage.name for stage in stages if stage.name in there]
        atomic_write_json(config.out / DONE, {"asked": asked, "stages": listed})
    return _found(config.out, wanted, stopped)


def up_to(stages: Stages, until: str | None) -> Stages:
    """The stages up to one, or all. Raises ValueError for an unknown one."""
    names = [stage.name for stage in stages]
    if until is None:
        return stages
    if until not in names:
        raise ValueError(f"There is no stage '{until}'; there are {', '.join(names)}.")
    return stages[: names.index(until) + 1]


def inputs_of(ctx: Context, stage: Stage[Any, Any]) -> dict[str, Any]:
    """What a stage is made from: its options, and the outputs of the stages that it needs."""
    needed = {name: ctx.records[name].fingerprint for name in stage.needs if name in ctx.records}
    return json.loads(json.dumps({"options": stage.inputs(ctx), "from": needed}))


def asked_for(config: AuditConfig, stages: Stages) -> dict[str, Any]:
    """What was asked for, and what of it lies on the disk, as far as that is quick to tell."""
    options = options_by_name(config, stages)
    said = {name: str(options[name]) for name in sorted(options) if name not in _NOT_ASKED}
    named = [*config.models, config.dataset, config.judge.judge]
    named += [token for token in config.train if not token.startswith("--")]
    paths = {str(p): fingerprint_path(p) for p in named if p is not None}
    for stage in stages:
        paths |= stage.outside()
    if config.run is not None:
        paths[str(config.run)] = fingerprint_run(config.run)
    return json.loads(json.dumps({"version": __version__, "options": said, "paths": paths}))


def options_by_name(config: AuditConfig, stages: Stages) -> dict[str, Any]:
    """What is done, by whom and how, of all stages, by the names of the command's options."""
    options: dict[str, Any] = {
        "models": list(config.models),
        "run": config.run,
        "dataset": config.dataset,
        "train": list(config.train),
    }
    for part in (config.judge, *(stage.options for stage in stages)):
        options |= {one.name: getattr(part, one.name) for one in fields(part)}
    return options


def _nothing_to_do(out: Path, asked: dict[str, Any], wanted: Sequence[str]) -> bool:
    before = _done(out)
    if before.get("asked") != asked or not set(wanted) <= set(before["stages"]):
        return False
    records = [(stage, Record.read(out / stage)) for stage in wanted]
    return all(record is not None and record.intact(out / stage) for stage, record in records)


class _Done(TypedDict):
    asked: dict[str, Any]
    stages: list[str]


def _done(out: Path) -> dict[str, Any]:
    """What the last audit that came to its end was asked, and which stages are there.

    It only saves time: what cannot be read is written anew at the end.
    """
    try:
        return read_json(out / DONE, _Done, "")
    except (FileNotFoundError, ValueError):
        return {}


def _found(out: Path, wanted: Stages, stopped: str | None = None) -> AuditResult:
    records = {stage.name: Record.read(out / stage.name) for stage in wanted}
    return AuditResult(
        out, {name: one for name, one in records.items() if one is not None}, stopped
    )
