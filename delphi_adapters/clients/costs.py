"""What asking a judge costs in requests, tokens, dollars and time, said before it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .judge_time import say_time
from .records import USUAL_ANSWER, Usage

if TYPE_CHECKING:
    from delphi.clients import Client

Prompts = Sequence[str | Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Dollars:
    """What requests to an API take."""

    input_tokens: int
    likely_cost: float | None
    """With answers of the usual length; None if the model has no price."""

    most_cost: float | None
    """With answers as long as allowed."""


@dataclass(frozen=True)
class Costs:
    """What asking takes."""

    requests: int
    dollars: Dollars | None = None
    """None for a judge that costs nothing."""

    seconds: float | None = None
    """On this machine; None for a judge that is asked elsewhere."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what does not go with the judge."""
        found: dict[str, Any] = {"requests": self.requests}
        found |= vars(self.dollars) if self.dollars is not None else {}
        found |= {} if self.seconds is None else {"seconds": self.seconds}
        return found


def costs(client: Client | None, prompts: Prompts, scale: float = 1.0) -> Costs:
    """Of `scale` times as many prompts as these; no client gives the number of requests alone."""
    from .api_client import ApiClient

    requests = round(len(prompts) * scale)
    if not isinstance(client, ApiClient):
        return Costs(requests)
    most = client.estimate(prompts)
    usual = client.ledger.estimate_usage(
        [
            (one, Usage(input=one.estimated_tokens, output=min(USUAL_ANSWER, one.max_tokens)))
            for one in (client.request(prompt) for prompt in prompts)
            if client.store.get(one.key) is None
        ],
        batch=client.batch,
    )
    return Costs(
        requests,
        Dollars(
            round(most.input_tokens * scale),
            None if usual.cost is None else usual.cost * scale,
            None if most.cost is None else most.cost * scale,
        ),
    )


def say_costs(
    client: Client | None, prompts: Prompts, scale: float = 1.0, what: str | None = None
) -> Costs:
    """Print and return `costs`.

    A judge on the own machine is timed, and the seconds are said, for `what` or these requests.
    """
    from .api_client import ApiClient

    found = costs(client, prompts, scale)
    line = f"about {found.requests:,} requests"
    if found.dollars is not None:
        line += f", {found.dollars.input_tokens:,} tokens of prompts"
        likely, most = found.dollars.likely_cost, found.dollars.most_cost
        if likely is not None and most is not None:
            longest = client.config.max_tokens if isinstance(client, ApiClient) else 0
            line += (
                f", ${likely:,.2f} if answers have {USUAL_ANSWER} tokens and "
                f"${most:,.2f} if all have {longest:,}"
            )
    print(line, flush=True)
    seconds = say_time(client, prompts, scale, what or f"{found.requests:,} requests")
    return Costs(found.requests, found.dollars, seconds)
