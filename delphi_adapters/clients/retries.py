"""Which failures are worth another attempt, and when."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from json import JSONDecodeError
from time import time
from typing import Any

from .messages import MalformedResponse

LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a server that asks for a longer wait is asked again after this one."""

_RETRIED = (408, 409, 429)
_TRANSPORTS = ("httpx", "httpcore", "httpx2", "httpcore2")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter: seconds double from `first_delay` to `longest_delay`."""

    attempts: int = 6
    """How often a request is sent at most."""
    first_delay: float = 1.0
    longest_delay: float = 60.0
    jitter: Callable[[], float] = random.random
    """A number in [0, 1): a delay is between half of and its full length."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self):
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}.")

    def delay(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1).

        What the server asked for (`retry_after`) is never undercut, up to an hour.
        """
        if retry_after is not None:
            return min(retry_after, LONGEST_RETRY_AFTER) + self.first_delay * self.jitter()
        delay = min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 60))
        return delay * (0.5 + 0.5 * self.jitter())


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed."""

    reason: str
    status: int | None
    retryable: bool
    retry_after: float | None = None
    """Seconds that the server asked to wait."""
    received: bool = False
    """Whether the server may have acted on it: it was sent, and no clear refusal came back."""

    @property
    def billed(self) -> bool:
        """Whether it may have been paid for: errors that the server reports are not."""
        return self.received and self.status in (None, 200)


def read_failure(error: Any, redact: Callable[[str], str], package: str) -> Failure:
    """Judge an exception of a call through the SDK of a package; another's is raised again."""
    sdk = import_module(package)  # anthropic and openai name their errors alike

    if isinstance(error, sdk.APIStatusError):
        headers = error.response.headers
        status = error.status_code
        retryable = status in _RETRIED or status >= 500
        if headers.get("x-should-retry") in ("true", "false"):
            retryable = headers["x-should-retry"] == "true"
        reason = redact(f"HTTP {status}: {_said(error)}")
        return Failure(reason[:500], status, retryable, retry_after(headers), status >= 500)
    if isinstance(error, sdk.APIConnectionError):
        cause = error.__cause__
        kind = type(cause).__name__ if cause else "connection error"
        timeout = isinstance(error, sdk.APITimeoutError)
        what = "no response in time" if timeout else "the connection failed"
        sent = kind not in ("ConnectError", "ConnectTimeout", "PoolTimeout")
        return Failure(redact(f"{what} ({kind}: {cause})")[:500], None, True, received=sent)
    malformed = (MalformedResponse, JSONDecodeError, UnicodeDecodeError)
    if isinstance(error, (*malformed, sdk.APIResponseValidationError)):
        return Failure(redact(f"malformed response: {error}")[:500], 200, True, received=True)
    if type(error).__module__.partition(".")[0] in _TRANSPORTS:  # while streaming
        reason = redact(f"the connection failed ({type(error).__name__}: {error})")
        return Failure(reason[:500], None, True, received=True)
    raise error


def _said(error: Any) -> str:
    """What a server said of a request that it did not answer."""
    body = error.body if isinstance(error.body, Mapping) else {}
    said = getattr(error, "api_message", None) or body.get("message")
    return said if isinstance(said, str) and said else error.message


def retry_after(headers: Mapping[str, Any], now: Callable[[], float] = time) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after` (a number or an HTTP date), or None.

    A date is counted from the response's own `Date` where it has one, so that a wrong clock here
    does not matter.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    date = _timestamp(headers.get("retry-after"))
    if date is None:
        return None
    start = _timestamp(headers.get("date"))
    return max(0.0, date - (now() if start is None else start))


def _timestamp(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (TypeError, ValueError):
        return None


def redactor(secrets: Iterable[str | None]) -> Callable[[str], str]:
    """A function that takes keys out of a text."""
    known = [re.escape(secret) for secret in secrets if secret]
    pattern = re.compile("|".join([*known, r"sk-ant-[\w-]+|sk-[\w-]{16,}"]))
    return lambda text: pattern.sub("[redacted]", text)
