"""Names and reading of the files that hold one latent's result each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparsify_crosscoder.records import check

T = TypeVar("T")


def file_name(latent: object) -> str:
    """A latent's name as delphi spells it in the names of its scores' files."""
    return str(latent).replace("/", "--")


def read_result(path: Path, make: Callable[[dict[str, Any]], T], what: str) -> T:
    """What `make` makes of the JSON object in a file.

    Raises ValueError, which names `what` the file should be and what to do, where that fails.
    """
    try:
        made = make(json.loads(path.read_text(encoding="utf-8")))
        if is_dataclass(made) and not isinstance(made, type):
            check(asdict(made), type(made))
        return made
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else repr(error)
        raise ValueError(
            f"{path} is not {what} ({said}): delete it, and the run will ask again."
        ) from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, not {what}: remove it.") from error


def read_results(
    results_dir: str | Path, kind: str, make: Callable[[dict[str, Any]], T], what: str
) -> list[T]:
    """Each result in the folder `kind` below `results_dir`, in the order of their names.

    Raises FileNotFoundError where `results_dir` is missing, and ValueError as `read_result` does.
    """
    results_dir = Path(results_dir)
    if not results_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {results_dir} to load {kind} from.")
    files = sorted((results_dir / kind).glob("[!.]*.json"))
    return [read_result(path, make, what) for path in files]
