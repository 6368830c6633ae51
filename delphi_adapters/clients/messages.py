"""Reading what the API sends back; the SDK itself checks no fields."""

from __future__ import annotations

from typing import Any

from .records import Usage

Answer = tuple[str, str, Usage]
"""Text, stop reason and tokens."""


class MalformedResponse(Exception):
    """A response with a good status that is not what the API promises."""


def read_message(message: Any) -> Answer:
    """What a Message says; raises MalformedResponse if it is none, such as the plain text that
    the SDK hands out where the response is not JSON."""
    if getattr(message, "type", None) != "message":
        raise MalformedResponse(f"not a message: {str(message)[:200]!r}")
    content = getattr(message, "content", None)
    if not isinstance(content, list):
        raise MalformedResponse("a message without content")
    stop_reason = getattr(message, "stop_reason", None)
    if not isinstance(stop_reason, str):
        raise MalformedResponse("a message without a stop reason")
    texts = [getattr(b, "text", "") for b in content if getattr(b, "type", None) == "text"]
    usage = getattr(message, "usage", None)
    tokens = Usage(
        input=whole(usage, "input_tokens"),
        output=whole(usage, "output_tokens"),
        cache_write=whole(usage, "cache_creation_input_tokens", 0),
        cache_read=whole(usage, "cache_read_input_tokens", 0),
    )
    return "".join(texts), stop_reason, tokens


def whole(obj: Any, name: str, default: int | None = None) -> int:
    """A whole number >= 0 among an object's attributes; raises MalformedResponse."""
    value = getattr(obj, name, None)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedResponse(f"no number of {name}")
    return value
