"""An audit from Python."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..clients.judge import JudgeConfig
from .config import OUT, AuditConfig
from .pipeline import AuditResult, run_audit
from .stage_list import stage_kinds

if TYPE_CHECKING:
    from delphi.clients import Client

    from sparsify_crosscoder.runs.run import Run


def audit(
    run: Run | Path | str | AuditConfig,
    judge: JudgeConfig | Client | None = None,
    *,
    out: Path | str = OUT,
    until: str | None = None,
    **options: Any,
) -> AuditResult:
    """Say what differs between the models of a run, from its latents to a report.

    What is there already, from the same inputs, is not done again.

    Args:
        run: a trained run or its folder; or all that an audit can be asked for, which then has the
            judge and the folder too.
        judge: who it is, or a client to ask; nobody if None.
        out: folder of the audit.
        until: the last stage to do; all if None.
        options: of the command, by their names, such as `verify=10`.

    Raises ValueError for options that make no sense, TypeError for unknown ones.
    """
    if isinstance(run, AuditConfig):
        return run_audit(run, until)
    path = Path(run) if isinstance(run, str | Path) else run.path
    hub = {}
    if not isinstance(run, str | Path):
        hub = {
            "hf_token": run.config.hf_token,
            "trust_remote_code": run.config.trust_remote_code,
        }
    client = None
    if judge is None:
        judge = JudgeConfig()
    elif not isinstance(judge, JudgeConfig):
        client, judge = judge, JudgeConfig(judge=str(judge.model))
    config = AuditConfig(run=path, out=Path(out), judge=judge, stages=_stages(options), **hub)
    return run_audit(config, until, client)


def _stages(options: dict[str, Any]) -> dict[str, Any]:
    left, made = dict(options), {}
    for kind in stage_kinds():
        names = [one.name for one in fields(kind.Options)]
        made[kind.name] = kind.Options(**{name: left.pop(name) for name in names if name in left})
    if left:
        raise TypeError(f"An audit has no option '{next(iter(left))}'.")
    return made
