"""What became of one request to the Messages API."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sparsify_crosscoder.records import check

USUAL_ANSWER = 200
"""Tokens of an answer, for what is likely."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more requests."""

    input: int = 0
    """Read at the price of input: neither from nor into the prompt cache."""
    output: int = 0
    """Written by the model, its thinking included."""
    cache_write: int = 0
    """Of the prompt, written to the prompt cache."""
    cache_read: int = 0
    """Of the prompt, read from the prompt cache."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cache_write + other.cache_write,
            self.cache_read + other.cache_read,
        )

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, cached or not."""
        return self.input + self.cache_write + self.cache_read


@dataclass(frozen=True)
class RequestRecord:
    """The final outcome of one request: an answer, or an error after the last attempt."""

    key: str
    """`Request.key`: the SHA-256 of everything that determines the answer."""
    model: str
    text: str = ""
    """The answer's text blocks, joined; what there is for a refusal or a `max_tokens` stop."""
    stop_reason: str | None = None
    """As the API names it ("end_turn", "max_tokens", "refusal", ...); None for a failure."""
    usage: Usage = field(default_factory=Usage)
    attempts: int = 1
    """How often it was sent, in a batch or alone."""
    error: str | None = None
    """Why it failed; None for an answer."""
    status: int | None = None
    """HTTP status of the last attempt of a failure, where there was a response."""
    batch: bool = False
    """Whether it was answered by a Message Batch, at half price."""
    uncertain_cost: float = 0.0
    """Dollars that attempts without a usable response (timeouts, cut connections) may have cost."""

    @property
    def failed(self) -> bool:
        return self.error is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> RequestRecord:
        """The inverse of `to_json`; unknown fields are ignored.

        Raises ValueError for missing ones and for values of another type.
        """
        check(obj, cls)
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in obj.items() if name in known}
        return cls(**{**values, "usage": Usage(**values.get("usage", {}))})
