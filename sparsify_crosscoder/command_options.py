"""Options of a command as a dataclass: a field is an option, its docstring the help.

A field whose type is itself such a dataclass stands for that one's options, in its place. In a
docstring `{default}`, with a format such as `{default:,}`, is the field's default.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def option(
    default: Any = dataclasses.MISSING,
    *,
    positional: bool = False,
    heading: str | None = None,
    **shown: Any,
) -> Any:
    """A field with more to say than its type and docstring; `shown` goes to `add_argument`.

    `heading` is for a command that lists its options under several, see `heading_of`. A list is a
    new one for each command line.
    """
    metadata = {"positional": positional, "heading": heading, "shown": shown}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(options: type[T]) -> T:
    """A field that stands for the options of another dataclass."""
    return dataclasses.field(default_factory=options)  # pyright: ignore[reportReturnType]


@dataclasses.dataclass(frozen=True)
class HubOptions:
    """Of every command that loads models or tokenizers: the hub's token, and whom to trust."""

    hf_token: str | None = None
    """token for gated or private models (the one in HF_TOKEN, or of `hf auth login`)"""

    trust_remote_code: bool = False
    """run the code that comes with a model, which can do anything that you can"""

    @property
    def access(self) -> dict[str, Any]:
        """The same as `Run.open` takes it."""
        return {"token": self.hf_token, "trust_remote_code": self.trust_remote_code}


@dataclasses.dataclass(frozen=True)
class UsualOptions:
    """Of most commands: where to run, what is loaded from the hub, and the JSON."""

    device: str | None = None
    """device to run on"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write everything to this file"""


def heading_of(field: dataclasses.Field[Any]) -> str | None:
    """What the option stands under, if it is not with the others of its dataclass."""
    return field.metadata.get("heading")


def add_options(
    parser: argparse._ActionsContainer,
    options: type,
    fields: Iterable[dataclasses.Field[Any]] | None = None,
) -> None:
    """Give a parser, or a group of its options, those of a dataclass, or only some `fields`."""
    hints, docs = get_type_hints(options), _docstrings(options)
    for field in dataclasses.fields(options) if fields is None else fields:
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            add_options(parser, hint)  # pyright: ignore[reportArgumentType]
        else:
            _add(parser, field, hint, docs.get(field.name))


def read_options(options: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass of what was parsed, by the options' names."""
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # pyright: ignore[reportArgumentType]
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = read_options(hint, given)  # pyright: ignore[reportArgumentType]
        else:
            value = given[field.name]
            values[field.name] = tuple(value) if get_origin(hint) is tuple else value
    return options(**values)


def _add(
    parser: argparse._ActionsContainer, field: dataclasses.Field[Any], hint: Any, doc: str | None
) -> None:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    given = default is not dataclasses.MISSING
    positional = field.metadata.get("positional", False)
    taken: dict[str, Any] = _taken(hint)
    if positional and given:
        taken["nargs"] = "?"
    elif not positional and not given:
        taken["required"] = True
    if given and not positional and "action" not in taken:
        taken["default"] = default
    if doc is not None:
        said = doc.format(default=default) if "{default" in doc else doc
        taken["help"] = said.replace("%", "%%")
    taken |= field.metadata.get("shown", {})
    parser.add_argument(field.name if positional else f"--{field.name}", **taken)


def _taken(hint: Any) -> dict[str, Any]:
    """What a type says of an option to `add_argument`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not types.NoneType)
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is list:
        return {"nargs": "+", **_taken(get_args(hint)[0])}
    if get_origin(hint) is tuple:
        return {"nargs": len(get_args(hint)), **_taken(get_args(hint)[0])}
    if hint in (int, float, Path):
        return {"type": hint}
    if hint is str:
        return {}
    raise TypeError(f"{hint} is the type of no option")


def _docstrings(options: type) -> Mapping[str, str]:
    """The texts that stand below fields, those of base classes included, each in one line."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for one, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(one, ast.AnnAssign)
                and isinstance(one.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[one.target.id] = " ".join(str(below.value.value).split())
    return found
