"""Tokens, dollars and a budget."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any

from .records import RequestRecord, Usage
from .requests import Request

BATCH_FACTOR = 0.5
"""What a Message Batch costs of the price of the same requests sent alone."""


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens of one model."""

    input: float
    output: float
    cache_write: float
    """For the cache of five minutes, which is what the clients ask for."""
    cache_read: float
    long_prompt_tokens: int | None = None
    """Prompts longer than this cost `long_prompt_factor` times as much, the answer included."""
    long_prompt_factor: float = 1.0

    def cost(self, usage: Usage, batch: bool = False) -> float:
        """Dollars for the tokens of one request."""
        dollars = (
            usage.input * self.input
            + usage.output * self.output
            + usage.cache_write * self.cache_write
            + usage.cache_read * self.cache_read
        ) / 1e6
        if self.long_prompt_tokens is not None and usage.prompt > self.long_prompt_tokens:
            dollars *= self.long_prompt_factor
        return dollars * (BATCH_FACTOR if batch else 1.0)


_OPUS = Price(5.00, 25.00, 6.25, 0.50)
_SONNET = Price(3.00, 15.00, 3.75, 0.30)
# From https://platform.claude.com/docs/en/about-claude/pricing as of autumn 2026, those of the 5.5
# models from what others report of it (of two reports, the higher price). Check them there before a
# large run, and give your own with `prices=`.
DEFAULT_PRICES: dict[str, Price] = {
    "claude-opus-5-5": Price(4.00, 20.00, 5.00, 0.20),
    **dict.fromkeys([f"claude-opus-{v}" for v in ("5", "4-8", "4-7", "4-6", "4-5")], _OPUS),
    "claude-opus-4-1": Price(15.00, 75.00, 18.75, 1.50),
    "claude-sonnet-5-5": Price(2.00, 10.00, 2.50, 0.20),
    "claude-sonnet-5": Price(2.00, 10.00, 2.50, 0.20),
    **dict.fromkeys(["claude-sonnet-4-6", "claude-sonnet-4-5"], _SONNET),
    "claude-haiku-5-5": Price(0.10, 0.50, 0.125, 0.01, 100_000, 5.0),
    "claude-haiku-4-5": Price(1.00, 5.00, 1.25, 0.10),
}


class UnknownPrice(ValueError):
    """A budget or an estimate needs the price of a model that is not in the table."""


class BudgetExceeded(BaseException):
    """The next request could cost more than the budget has left.

    Not an Exception, since delphi's scorers take every Exception for an unanswered example and
    would go through a whole run without answers. Raised when no request is in flight; answers so
    far are in the store, so the same run with a higher `max_cost` continues from here.
    """


class RunStopped(BaseException):
    """Somebody stopped the run, and what was in flight is answered and stored.

    Not an Exception, as BudgetExceeded. The same run continues from here.
    """


@dataclass(frozen=True)
class Estimate:
    """What requests may cost, before any is sent."""

    requests: int
    """To be sent: without repeated ones and those the store has answers to."""
    stored: int
    """Answered by the store."""
    input_tokens: int
    output_tokens: int
    """If every answer is as long as allowed (`max_tokens`)."""
    cost: float | None
    """Dollars, without the prompt cache; None if the model has no price."""


def load_prices(prices: Mapping[str, Any] | str | Path | None) -> dict[str, Price]:
    """The default table, with models added or replaced from a mapping or a JSON file.

    Each value is a Price or an object `{"input": ..., "output": ..., "cache_write": ...,
    "cache_read": ...}` in dollars per million tokens; without the cache's prices, writing costs
    1.25 times and reading 1.0 times the input's. Raises ValueError for anything else.
    """
    where = "prices"
    if isinstance(prices, str | Path):
        where = str(prices)
        try:
            prices = json.loads(Path(prices).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(prices, Mapping):
            raise ValueError(f"{where} must map names of models to prices.")
    if not isinstance(prices, Mapping | None):
        raise ValueError(f"{where} must map names of models to prices.")
    return {**DEFAULT_PRICES, **{m: _price(where, m, p) for m, p in (prices or {}).items()}}


def _price(where: str, model: str, value: Any) -> Price:
    if isinstance(value, Price):
        return value
    known = {f.name for f in fields(Price)}
    numbers = (
        {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}
    )
    if not {"input", "output"} <= numbers.keys() <= known:
        raise ValueError(
            f"{where}: the price of {model!r} must be an object with `input` and `output` in "
            f"dollars per million tokens (and at most {sorted(known)}), not {value!r:.120}"
        )
    if not all(type(v) in (int, float) and 0 <= v < math.inf for v in numbers.values()):
        raise ValueError(f"{where}: the price of {model!r} holds what is no price: {value!r:.120}")
    defaults = {"cache_write": 1.25 * numbers["input"], "cache_read": numbers["input"]}
    return Price(**{**defaults, **numbers})


class Ledger:
    """Counts tokens, dollars and outcomes of one or more clients, and keeps them to a budget.

    `max_cost` is in dollars and for good: answers that a client's store holds from earlier runs
    count, and so does what requests in flight, timed out or cut off could have cost. Raises
    UnknownPrice where a budget meets a model without a price.
    """

    def __init__(
        self,
        prices: Mapping[str, Any] | str | Path | None = None,
        max_cost: float | None = None,
    ):
        if max_cost is not None and not max_cost >= 0:
            raise ValueError(f"max_cost must be dollars, at least 0, not {max_cost!r}.")
        self.prices = load_prices(prices)
        self.max_cost = max_cost
        self.usage: dict[str, Usage] = {}
        """Tokens by model, of this run's answers."""
        self.outcomes: Counter[str] = Counter()
        """This run's requests by stop reason, "failed", or "stored" (answered by the store)."""
        self.retries = 0
        self.spent = 0.0
        """Dollars for this run's answers."""
        self.earlier = 0.0
        """Dollars for the stores' answers of earlier runs."""
        self.uncertain = 0.0
        """Dollars that attempts without a usable response may have cost."""
        self.reserved = 0.0
        """Dollars that requests in flight may cost."""
        self.stopped = False
        """Whether the budget has stopped the run."""
        self._closing = False
        self._holds = 0
        self._included: set[str] = set()
        self._settled: Future[None] = Future()
        self._lock = Lock()

    @property
    def cost(self) -> float:
        """Dollars so far, earlier runs and uncertain ones included."""
        return self.spent + self.earlier + self.uncertain

    def price(self, model: str) -> Price | None:
        """The model's price, or None; a dated name has the price of the name before the date."""
        name, _, date = model.rpartition("-")
        dated = len(date) == 8 and date.isdigit()
        return self.prices.get(model) or (self.prices.get(name) if dated else None)

    def require_price(self, model: str) -> None:
        """Raise UnknownPrice if there is a budget but no price for `model`."""
        if self.max_cost is not None and self.price(model) is None:
            raise UnknownPrice(
                f"max_cost is set but the price of {model!r} is not known. Give it with prices="
                f'{{"{model}": {{"input": ..., "output": ...}}}} (dollars per million tokens).'
            )

    def worst_case(self, request: Request, batch: bool = False) -> float:
        """The most that a request can cost in dollars; 0 without a price."""
        price = self.price(request.model)
        if price is None:
            return 0.0
        tokens, most = request.most_tokens, request.max_tokens
        as_input = price.cost(Usage(input=tokens, output=most), batch)
        return max(as_input, price.cost(Usage(cache_write=tokens, output=most), batch))

    def estimate(
        self, requests: Iterable[Request], stored: int = 0, batch: bool = False
    ) -> Estimate:
        """Prompts by four characters a token, answers by their `max_tokens`."""
        unique = list({request.key: request for request in requests}.values())
        sizes = [(r, Usage(input=r.estimated_tokens, output=r.max_tokens)) for r in unique]
        return self.estimate_usage(sizes, stored, batch)

    def estimate_usage(
        self, sizes: list[tuple[Request, Usage]], stored: int = 0, batch: bool = False
    ) -> Estimate:
        """An estimate from each request's tokens."""
        priced = [(self.price(request.model), usage) for request, usage in sizes]
        costs = [price.cost(usage, batch) for price, usage in priced if price is not None]
        total = sum((usage for _, usage in sizes), Usage())
        cost = sum(costs) if len(costs) == len(sizes) else None
        return Estimate(len(sizes), stored, total.input, total.output, cost)

    def try_reserve(self, amount: float) -> bool:
        """Set dollars aside for a request about to be sent; False if they do not fit now.

        Raises BudgetExceeded if they cannot fit, since nothing is in flight that could cost less
        than was set aside for it, or if the budget has stopped the run before; RunStopped after
        `stop()` when nothing is in flight.
        """
        with self._lock:
            if self._closing:
                if self._holds:
                    return False
                raise RunStopped("The run was stopped; answers so far are kept.")
            fits = self.max_cost is None or self._total() + amount <= self.max_cost + 1e-12
            if fits and not self.stopped:
                self.reserved += amount
                self._holds += 1
                return True
            if self._holds and not self.stopped:
                return False
            self.stopped = True
        raise BudgetExceeded(
            f"The budget of ${self.max_cost:.4g} is used up: ${self.cost:.4g} are spent (earlier "
            f"runs of the same store included) and the next request could cost ${amount:.4g}. "
            "Answers so far are kept: run again with a higher max_cost to continue."
        )

    async def reserve(self, amount: float) -> None:
        """As `try_reserve`, but waits for requests in flight until it fits."""
        while True:
            settled = self._settled
            if self.try_reserve(amount):
                return
            await asyncio.shield(asyncio.wrap_future(settled))

    def stop(self) -> None:
        """Send nothing more; the run ends with RunStopped when what is in flight is answered."""
        self._closing = True

    def resume(self, amount: float) -> None:
        """Set dollars aside for what an earlier process sent and is still in flight."""
        with self._lock:
            self.reserved += amount
            self._holds += 1

    def release(self, amount: float, uncertain: bool = False) -> None:
        """Give reserved dollars back; `uncertain` ones may have been spent all the same."""
        with self._lock:
            self._holds -= 1
            self.reserved = self.reserved - amount if self._holds else 0.0
            self.uncertain += amount if uncertain else 0.0
            settled, self._settled = self._settled, Future()
        settled.set_result(None)

    def add(self, record: RequestRecord) -> None:
        """Count a final outcome of this run."""
        with self._lock:
            self.outcomes["failed" if record.failed else record.stop_reason or "unknown"] += 1
            self.retries += record.attempts - 1
            self.usage[record.model] = self.usage.get(record.model, Usage()) + record.usage
            self.spent += self._cost(record)

    def add_stored(self) -> None:
        """Count a request that the store answered."""
        with self._lock:
            self.outcomes["stored"] += 1

    def include(self, place: str, records: Iterable[RequestRecord], uncertain: float) -> None:
        """Count a store's answers of earlier runs, once for each `place`."""
        records = list(records)
        for record in records:
            self.require_price(record.model)
        with self._lock:
            if place not in self._included:
                self._included.add(place)
                self.earlier += sum(self._cost(record) for record in records)
                self.uncertain += uncertain

    def summary(self) -> dict[str, Any]:
        """All counts as JSON values, with tokens and dollars of this run by model."""
        models = {
            m: {**vars(u), "priced": self.price(m) is not None} for m, u in self.usage.items()
        }
        return {
            "models": models,
            "outcomes": dict(self.outcomes),
            "retries": self.retries,
            "spent": self.spent,
            "earlier": self.earlier,
            "uncertain": self.uncertain,
            "max_cost": self.max_cost,
            "stopped_by_budget": self.stopped,
        }

    def _total(self) -> float:
        return self.spent + self.earlier + self.uncertain + self.reserved

    def _cost(self, record: RequestRecord) -> float:
        price = self.price(record.model)
        return price.cost(record.usage, record.batch) if price else 0.0
