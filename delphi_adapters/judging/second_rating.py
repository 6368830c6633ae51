"""Asking the judge again about a sample of a rubric's answers, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..clients import ApiClient
from ..clients.costs import Costs, say_costs
from ..clients.judge import JudgeConfig, make_client
from ..clients.ledger import Ledger
from ..clients.stopping import Stopped, run_asking
from .reliability import AGAIN, Agreement, repeat, repeat_agreement
from .rubric_runs import Item
from .rubrics import Rubric


@dataclass(frozen=True)
class SecondRating:
    """What came of asking again."""

    judge: str | None
    estimate: Costs
    agreement: dict[str, Agreement] | None = None
    """Of both ratings, by dimension; None if they are not there."""

    unanswered: int = 0
    """Second ratings that could not be had or read."""

    ledger: Ledger | None = None
    """None if the judge costs nothing or was not asked."""

    stopped: str | None = None
    """Why the judge was stopped, if it was."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what is not there."""
        found: dict[str, Any] = {"judge": self.judge, "estimate": self.estimate.to_dict()}
        found["stopped"] = self.stopped
        if self.ledger is not None:
            found["ledger"] = self.ledger.summary()
        if self.agreement is not None:
            found["repeat"] = {label: asdict(one) for label, one in self.agreement.items()}
            found["repeat_unanswered"] = self.unanswered
        return found


def rate_again(
    judge: JudgeConfig,
    rubric: Rubric,
    items: Sequence[Item],
    folder: Path,
    *,
    temperature: float = 0.0,
    dry_run: bool = False,
) -> SecondRating:
    """Say what it costs to rate the items of a folder again, and unless `dry_run` do it.

    Raises ValueError for options that do not fit the judge.
    """
    client = make_client(judge, folder, dry_run=dry_run)
    prompts = [
        rubric.messages(one.prompt, one.answer, ended=one.ended, note=AGAIN) for one in items
    ]
    estimate = say_costs(client, prompts)
    if dry_run:
        return SecondRating(judge.judge, estimate)
    assert client is not None
    second = repeat(
        client,
        rubric,
        items,
        folder,
        max_concurrent=judge.max_concurrent,
        temperature=temperature,
    )
    agreement, unanswered, stopped = None, 0, None
    try:
        repeats = run_asking(second, client)
        agreement = repeat_agreement(rubric, items, repeats)
        unanswered = sum(not one.scores for one in repeats.values())
    except Stopped as reason:
        stopped = str(reason)
    ledger = client.ledger if isinstance(client, ApiClient) else None
    return SecondRating(judge.judge, estimate, agreement, unanswered, ledger, stopped)
