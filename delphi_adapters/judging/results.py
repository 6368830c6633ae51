"""Folders that hold one JSON file for each thing that was asked about."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from sparsify_crosscoder.files import atomic_write_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@dataclass(frozen=True)
class ResultKind(Generic[T]):
    """What a folder of results holds."""

    folder: str
    """Its name in the folder of all results, such as "flags"."""

    of: type[T]
    """A dataclass, whose fields are those of the files."""

    what: str
    """One of them in an error: "a flag"."""

    def path(self, results_dir: str | Path, name: object) -> Path:
        """The file of what has this name. Raises ValueError for one that cannot name a file."""
        if not str(name).strip() or str(name).startswith("."):
            raise ValueError(
                f"{str(name)!r} cannot name a result: give it a name that begins otherwise."
            )
        return Path(results_dir) / self.folder / f"{file_name(name)}.json"

    def save(self, results_dir: str | Path, name: object, result: T) -> None:
        """Write a result, whole or not at all."""
        atomic_write_json(self.path(results_dir, name), asdict(cast(Any, result)))

    def load(self, results_dir: str | Path, name: object) -> T | None:
        """What `save` wrote, or None. Raises ValueError for a file that is no result."""
        path = self.path(results_dir, name)
        return self._read(path) if path.exists() else None

    def load_all(self, results_dir: str | Path) -> list[T]:
        """Every result, in the order of the files' names.

        Raises FileNotFoundError where `results_dir` is missing, and ValueError as `load` does.
        """
        results_dir = Path(results_dir)
        if not results_dir.is_dir():
            raise FileNotFoundError(f"There is no folder {results_dir} to load {self.folder} from.")
        return [self._read(path) for path in sorted((results_dir / self.folder).glob("[!.]*.json"))]

    def _read(self, path: Path) -> T:
        return read_result(path, lambda loaded: result_from(self.of, loaded), self.what)


def file_name(name: object) -> str:
    """A latent's name as delphi spells it in the names of its scores' files."""
    return str(name).replace("/", "--")


def result_from(of: type[T], loaded: Any) -> T:
    """A dataclass from the JSON object of its fields, and of those that these are made of.

    A field with a default may be missing, one that it does not have is let be. Raises ValueError,
    which names the field.
    """
    from pydantic import ValidationError

    try:
        return _adapter(of).validate_json(json.dumps(loaded), strict=True)
    except ValidationError as error:
        raise ValueError(said(error)) from None


def said(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors(include_url=False, include_context=False)[0]
    *place, last = map(str, first["loc"]) if first["loc"] else ["it"]
    where = ".".join([*place, last])
    if first["type"] == "missing":
        return f"it has no {where}"
    if first["type"] == "literal_error":
        return f"unknown {where} {first['input']!r:.60}"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    return f"{where}: {first['msg']}, not {first['input']!r:.60}"


def read_result(path: Path, make: Callable[[Any], T], what: str) -> T:
    """What `make` makes of the JSON value in a file.

    Raises ValueError, which names `what` the file should be and what to do, where that fails.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else repr(error)
        raise ValueError(
            f"{path} is not {what} ({reason}): delete it, and the run will ask again."
        ) from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, not {what}: remove it.") from error


@cache
def _adapter(of: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    return TypeAdapter(of)
