"""What a stage would take, and what its work came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHARACTERS = 4  # in a token, for estimates


@dataclass(frozen=True)
class Cost:
    """What a stage would take."""

    seconds: float = 0.0
    counts: Mapping[str, float | None] = field(default_factory=dict)
    """How much of what, as `--dry_run` says it, in order; "cost" is in dollars, None if unknown."""

    left_out: bool = False
    """Whether it is not done, as there is no judge."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        left_out = {"left_out": True} if self.left_out else {}
        return {"seconds": self.seconds, **self.counts, **left_out}


@dataclass
class Outcome:
    """What the work of a stage came to."""

    result: dict[str, Any] = field(default_factory=dict)
    """What later stages and the report want to know, as JSON values."""

    outputs: Sequence[Path] = ()
    """Files that must be there for the stage to be done."""

    identity: Any = None
    """JSON values that change where the outputs do. Later stages are done anew if they change; the
    contents of `outputs` if None."""

    unfinished: str | None = None
    """Why the stage has to be taken up again the next time, such as requests that failed."""
