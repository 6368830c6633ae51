"""What is left to do of an audit: counts, time and cost, before any of it is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clients.judge_time import duration
from ..clients.records import USUAL_ANSWER
from .config import AuditConfig
from .outcome import Cost
from .pipeline import inputs_of, up_to
from .runner import Record, State, state
from .stage import Context
from .stage_list import make_stages


@dataclass(frozen=True)
class StageEstimate:
    """What a stage took, or would take."""

    stage: str
    what: str
    state: State
    took: float | None
    """Seconds, of one that is done."""

    cost: Cost
    """Nothing, of one that is done."""

    def text(self) -> str:
        """The same in a line."""
        if self.took is not None:
            return f"{self.stage:<12} done, {duration(self.took)}: {self.what}"
        said = ", ".join(_counted(name, n) for name, n in self.cost.counts.items() if n)
        about = f"{self.state}, about {duration(self.cost.seconds)}"
        about = "left out, no judge" if self.cost.left_out else about
        return f"{self.stage:<12} {about}: {said or self.what}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        if self.took is not None:
            return {"state": self.state, "took": self.took}
        return {"state": self.state, **self.cost.to_dict()}


@dataclass(frozen=True)
class AuditEstimate:
    """What is left to do of an audit."""

    folder: Path
    stages: list[StageEstimate]
    device: str
    local_judge: str | None
    """The judge's name, where one on the own machine is asked."""

    @property
    def seconds(self) -> float:
        return sum(one.cost.seconds for one in self.stages)

    @property
    def dollars(self) -> float | None:
        """What the judge costs; None if that is nothing, or not known."""
        found = [cost for one in self.stages if (cost := one.cost.counts.get("cost"))]
        return sum(found) if found else None

    def text(self) -> str:
        """What the stages come to, in a few lines."""
        from ..clients.judge_time import named_cautions

        lines = [
            f"In all about {duration(self.seconds)} on {self.device}, computed from a short trial "
            "of it."
        ]
        if self.local_judge is not None:
            lines.append(
                f"What {self.local_judge} takes is computed from its size; it is timed on a few "
                "tokens before it is asked, and the time said again."
            )
            lines.append("\n".join(named_cautions(self.local_judge)))
        if self.dollars is not None:
            lines.append(
                f"The judge about ${self.dollars:,.2f}, with answers of {USUAL_ANSWER} tokens."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        likely = {} if self.dollars is None else {"likely_cost": self.dollars}
        return {
            "out": str(self.folder),
            "stages": {one.stage: one.to_dict() for one in self.stages},
            "stopped": None,
            "seconds": self.seconds,
            **likely,
        }


def estimate_audit(config: AuditConfig, until: str | None = None) -> AuditEstimate:
    """What an audit would take up to a stage; prints a line for each.

    Raises ValueError for options that make no sense.
    """
    ctx = Context(config, make_stages(config))
    stages = []
    for one in _estimates(ctx, until):
        print(one.text())
        stages.append(one)
    local = str(config.judge.judge) if ctx.judged and config.judge.local else None
    return AuditEstimate(ctx.out, stages, str(ctx.device), local)


def _estimates(ctx: Context, until: str | None) -> Iterator[StageEstimate]:
    known = True
    for stage in up_to(ctx.stages, until):
        found: State = state(ctx.out / stage.name, inputs_of(ctx, stage)) if known else "to do"
        if found == "done":
            record = Record.read(ctx.out / stage.name)
            assert record is not None
            ctx.done(stage, record)
            yield StageEstimate(stage.name, stage.what, found, record.seconds, Cost())
            continue
        known = False
        left_out = stage.needs_judge and not ctx.judged
        cost = Cost(left_out=True) if left_out else stage.estimate(ctx)
        yield StageEstimate(stage.name, stage.what, found, None, cost)


def _counted(name: str, count: float) -> str:
    if name == "cost":
        return f"${count:,.2f}"
    return f"{count:,.1f} {name}" if isinstance(count, float) else f"{count:,} {name}"
