"""Digests of texts and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_text(text: str, errors: str = "strict") -> str:
    """The sha256 of a text in UTF-8; `errors` is what is done with half characters."""
    return hashlib.sha256(text.encode("utf-8", errors)).hexdigest()


def hash_file(file: Path) -> str:
    """The sha256 of a file's contents."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
