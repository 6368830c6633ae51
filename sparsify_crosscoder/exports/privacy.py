"""What leaves this machine says nothing of where things are on it, and has no token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# Two steps or more, so that "and/or", "1/2" and "text/plain" are none.
_PLACE = re.compile(r"(?<![\w:/.~\\-])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s\"'+,;:()\[\]]+){2,}[/\\]?")
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,})")
PRIVATE_OPTIONS = ("hf_token", "save_dir", "json", "cache", "finetune")
"""Options of a run that say where things are, or who somebody is."""


def is_local(name: str) -> bool:
    """Whether the name of a model or dataset is a place on this machine, and not one on the hub."""
    return any(
        bool(part) and (_PLACE.fullmatch(part) is not None or _exists(part))
        for part in [name, *name.split("+")]
    )


def without_places(text: str) -> str:
    """The text with the last step alone of every place on this machine."""
    if _exists(text):
        return _last_step(text)
    # BASE+ADAPTER, of which each may have spaces in it.
    parts = [_last_step(p) if _exists(p) or p[:1] in ("/", "~") else p for p in text.split("+")]
    placeless = _PLACE.sub(lambda place: _last_step(place[0]), "+".join(parts))
    return _TOKEN.sub("TOKEN", placeless)


def shareable(value: Any) -> Any:
    """A value of JSON, keys included, without places on this machine and tokens."""
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, dict):
        return {without_places(str(key)): shareable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(one) for one in value]
    return value


def found_private(text: str) -> list[str]:
    """Places on this machine and tokens in a text."""
    found = [match[0] for match in _PLACE.finditer(re.sub(r"\w+://\S+", "", text))]
    return found + _TOKEN.findall(text)


def _exists(text: str) -> bool:
    if not re.search(r"[/\\]", text) or len(text) > 1000 or "\n" in text:
        return False
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _last_step(place: str) -> str:
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]
