"""Names and reading of the files that hold one latent's result each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def file_name(latent: object) -> str:
    """A latent's name as delphi spells it in the names of its scores' files."""
    return str(latent).replace("/", "--")


def read_results(folder: Path, read: Callable[[Path], T]) -> Iterator[T]:
    """What `read` makes of each JSON file in a folder, in the order of their names.

    Nothing where there is no folder. Raises ValueError, with what to do, for a file that `read`
    cannot make sense of.
    """
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            yield read(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a result ({error!r}): delete it, and the run will ask again."
            ) from error
