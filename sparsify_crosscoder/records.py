"""Files of our own, checked where they are read: a damaged one is named, with what to do.

What a file should hold is said by a type: a dataclass or a TypedDict for an object, and what these
are made of. A field with a default may be missing, a field that the type does not know is let be.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_NOT_OF_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO}
SCALARS: dict[Any, str] = {str: "a text", bool: "true or false", int: "a whole number"}
SCALARS |= {float: "a number", type(None): "null"}


class Damaged(ValueError):
    """A file is not what it should be; the message names it and says what to do."""


def damaged(file: Path | str, reason: object, remedy: str, how: str = "damaged") -> Damaged:
    """The error for a file; `remedy` is a whole sentence."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    said = said if len(said) < 300 else said[:300] + " ..."
    return Damaged(f"'{file}' is {how} ({said.rstrip('.')}). {remedy}")


@contextmanager
def reading(file: Path | str, remedy: str, how: str = "damaged") -> Iterator[None]:
    """Turn whatever reading a file raises into `Damaged`.

    FileNotFoundError and PermissionError stay as they are, and so does what is no damage: too many
    open files, no memory.
    """
    try:
        yield
    except (Damaged, FileNotFoundError, PermissionError, MemoryError):
        raise
    except RecursionError as error:
        raise damaged(file, "it is nested too deeply", remedy, how) from error
    except IsADirectoryError as error:
        raise damaged(file, "it is a folder", remedy, how) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_OF_THE_FILE:
            raise
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise damaged(file, said or type(error).__name__, remedy, how) from error


def read_json(file: Path | str, shape: Any, remedy: str) -> Any:
    """The JSON value in a file, which must fit the type `shape`.

    Raises Damaged, FileNotFoundError, PermissionError.
    """
    with reading(file, remedy):
        value = json.loads(Path(file).read_text(encoding="utf-8"))
        check(value, shape)
    return value


def read_lines(file: Path | str, shape: Any, remedy: str) -> list[Any]:
    """The JSON value of each line of a file that is appended to; none where there is no file.

    A last line that a kill cut off is left out. Raises Damaged, naming the line, for any other.
    """
    found: list[Any] = []
    with reading(file, remedy):
        try:
            data = Path(file).read_bytes()
        except FileNotFoundError:
            return found
        *lines, rest = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line.decode("utf-8"))
                check(value, shape)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error or 'it is nested too deeply'}") from error
            found.append(value)
        if rest:
            try:
                value = json.loads(rest.decode("utf-8"))
            except ValueError:  # cut off
                return found
            check(value, shape)
            found.append(value)
    return found


def check(value: Any, shape: Any, place: str = "") -> None:
    """Raise ValueError, naming the place, where a JSON value does not fit a type."""
    where = place or "what it holds"
    if shape in (Any, object):
        return
    if shape is None:
        shape = type(None)
    origin = get_origin(shape)
    if origin is Literal:
        if value not in get_args(shape) or isinstance(value, bool) is not isinstance(
            get_args(shape)[0], bool
        ):
            raise ValueError(f"{where} is {value!r:.60}, not one of {get_args(shape)}")
    elif origin in (Union, types.UnionType):
        _check_any(value, get_args(shape), where, place)
    elif dataclasses.is_dataclass(shape) or is_typeddict(shape):
        _check_object(value, shape, where, place)
    elif origin in (list, tuple, Sequence) or shape in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {_called(value)}, not a list")
        inner = [one for one in get_args(shape) if one is not ...]
        for i, one in enumerate(value):
            if inner:
                check(one, inner[min(i, len(inner) - 1)], f"{place}[{i}]")
    elif origin in (dict, Mapping) or shape in (dict, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_called(value)}, not an object")
        if get_args(shape):
            for name, one in value.items():
                check(one, get_args(shape)[1], f"{place}.{name}".lstrip("."))
    elif shape in SCALARS and not _is(value, shape):
        raise ValueError(f"{where} is {_called(value)}, not {SCALARS[shape]}")


def _check_any(value: Any, shapes: Sequence[Any], where: str, place: str) -> None:
    filled = [shape for shape in shapes if shape is not type(None)]
    if value is None and len(filled) < len(shapes):
        return
    if len(filled) == 1:
        return check(value, filled[0], place)
    for shape in filled:
        with suppress(ValueError):
            return check(value, shape, place)
    raise ValueError(f"{where} is {_called(value)}, which it cannot be")


def _check_object(value: Any, shape: Any, where: str, place: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_called(value)}, not an object")
    fields, required = _fields(shape)
    missing = sorted(required - value.keys())
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}")
    for name, hint in fields.items():
        if name in value:
            check(value[name], hint, f"{place}.{name}".lstrip("."))


@cache
def _fields(shape: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = get_type_hints(shape)
    if is_typeddict(shape):
        return hints, frozenset(shape.__required_keys__)
    absent = dataclasses.MISSING
    fields = dataclasses.fields(shape)
    required = {f.name for f in fields if f.default is absent and f.default_factory is absent}
    return {f.name: hints[f.name] for f in fields}, frozenset(required)


def _is(value: Any, shape: type) -> bool:
    if shape is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if shape is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, shape)


def _called(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "the text", int: "the number", float: "the number"}
    kind = kinds.get(type(value))
    if kind is not None:
        return f"{kind} {value!r:.60}"
    return "an object" if isinstance(value, dict) else "a list"
