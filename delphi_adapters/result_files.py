"""Names and reading of the files that hold one latent's result each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def file_name(latent: object) -> str:
    """A latent's name as delphi spells it in the names of its scores' files."""
    return str(latent).replace("/", "--")


def read_result(path: Path, make: Callable[[dict[str, Any]], T], what: str) -> T:
    """What `make` makes of the JSON object in a file.

    Raises ValueError, which names `what` the file should be and what to do, where that fails.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not {what} ({error!r}): delete it, and the run will ask again."
        ) from error


def read_results(folder: Path, make: Callable[[dict[str, Any]], T], what: str) -> Iterator[T]:
    """Each of a folder's results, in the order of their names; none where there is no folder."""
    for path in sorted(folder.glob("[!.]*.json")):
        yield read_result(path, make, what)
