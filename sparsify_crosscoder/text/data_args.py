"""`--data_args`: options of `datasets.load_dataset`, typed as it and its builders want them."""

import ast
import dataclasses
import importlib
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from datasets import BuilderConfig

BUILDERS = ("json", "csv", "text", "parquet", "arrow")
_LOADING: dict[str, Any] = {
    **dict.fromkeys(("name", "data_dir", "revision", "cache_dir"), str),
    **dict.fromkeys(("verification_mode", "download_mode"), str),
    **dict.fromkeys(("streaming", "keep_in_memory", "save_infos"), bool),
    "data_files": str | list | dict,
    "token": str | bool,
    "num_proc": int,
}
_REFUSED = {
    "trust_remote_code": "datasets runs no code of a dataset's any more; leave it off",
    "split": "give --split instead",
    "path": "the dataset is named by DATASET",
    "features": "types cannot be given on the command line; leave it off",
}
_ESCAPES = {r"\t": "\t", r"\n": "\n", r"\r": "\r", r"\\": "\\"}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def read_data_args(
    given: str | Mapping[str, Any] | None, builder: str | None = None
) -> dict[str, Any]:
    """Options such as `name=sample-10BT,sep=\\t,names=['a','b']` with the types of their fields.

    `builder` is the kind of file that is read, None if it is not known. What stands between
    quotes or brackets is not divided at commas; options of text stay as they are written. A
    mapping is only looked over. Raises ValueError, naming the option, for one that is not known,
    of another type, or has no place here.
    """
    written = _divide(given) if isinstance(given, str) else dict(given or {})
    for key in written:
        if key in _REFUSED:
            raise ValueError(f"--data_args: {key!r} cannot be given: {_REFUSED[key]}.")
        if builder and key in ("data_files", "data_dir"):
            raise ValueError(
                f"--data_args: {key!r} has no meaning for a single file; leave it off."
            )
        if builder and key not in _LOADING and key not in _hints(builder):
            known = ", ".join(sorted({*_hints(builder)} - {*_LOADING, "features", "version"}))
            raise ValueError(
                f"--data_args: files that are read as {builder} have no option {key!r}. There are "
                f"{known}."
            )
    if not isinstance(given, str):
        return written
    return {key: _typed(key, value, _hint(key, builder)) for key, value in written.items()}


def _divide(text: str) -> dict[str, str]:
    """The options as they are written, divided at the commas outside quotes and brackets."""
    parts, start, closing, quote = [], 0, "", ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (text[place - 1 : place] in ("=", ",", " ") or closing):
            quote = character
        elif character in _CLOSING:
            closing = _CLOSING[character] + closing
        elif closing and character == closing[0]:
            closing = closing[1:]
        elif character == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    options = {}
    for part in [*parts, text[start:]]:
        key, found, value = part.partition("=")
        if found and key.strip():
            options[key.strip()] = value if value.isspace() else value.strip()
        elif part.strip():
            raise ValueError(
                f"--data_args: {part.strip()!r} is not of the form key=value. Options are divided "
                "by commas; put a value that has commas between quotes."
            )
    return options


def _typed(key: str, written: str, hint: Any) -> Any:
    kinds = _kinds(hint)
    value = _literal(written)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if kinds is None or type(value) in kinds:
        result = value
    elif float in kinds and type(value) is int:
        result = float(value)
    elif str in kinds:
        result = _ESCAPES.get(written, written)
    else:
        names = " or ".join(sorted("None" if k is type(None) else k.__name__ for k in kinds))
        raise ValueError(f"--data_args: {key!r} must be {names}, got {written!r}.")
    if choices and result not in choices:
        raise ValueError(
            f"--data_args: {key!r} must be one of {', '.join(map(repr, choices))}, got {result!r}."
        )
    return result


def _literal(written: str) -> Any:
    """A number, truth value, None, list or quoted text as what it stands for, others as text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if written.lower() in words:
        return words[written.lower()]
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _ESCAPES.get(written, written)


def _kinds(hint: Any) -> set[type] | None:
    """The classes of the values that a type hint allows, None for any."""
    origin = get_origin(hint)
    if hint is Any or hint is None:
        return None
    if origin in (Union, types.UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return None if None in parts else set().union(*(part for part in parts if part))
    if origin is Literal:
        return {type(value) for value in get_args(hint)}
    kind = origin or hint
    return {kind} if inspect.isclass(kind) else None


def _hint(key: str, builder: str | None) -> Any:
    if key in _LOADING:
        return _LOADING[key]
    return next((h[key] for h in map(_hints, [builder] if builder else BUILDERS) if key in h), Any)


def _hints(builder: str) -> dict[str, Any]:
    """The fields of a builder's options with their types."""
    module = importlib.import_module(f"datasets.packaged_modules.{builder}.{builder}")
    config: Any = next(
        value
        for name, value in vars(module).items()
        if re.fullmatch(rf"{builder}config", name, re.IGNORECASE)
        and issubclass(value, BuilderConfig)
    )
    hints = get_type_hints(config)
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(config)}
