"""Digests of bytes, texts, JSON values and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_bytes(data: bytes) -> str:
    """The sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def hash_text(text: str, errors: str = "strict") -> str:
    """The sha256 of a text in UTF-8; `errors` is what is done with half characters."""
    return hash_bytes(text.encode("utf-8", errors))


def hash_json(value: Any, *, sort_keys: bool = False) -> str:
    """The sha256 of a JSON value as `json.dumps` writes it."""
    return hash_text(json.dumps(value, sort_keys=sort_keys))


def hash_file(file: Path) -> str:
    """The sha256 of a file's contents."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
