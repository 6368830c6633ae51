"""Options of a command from the fields of a dataclass, whose docstrings are their help."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from simple_parsing.docstring import get_attribute_docstring

T = TypeVar("T")


def add_option(parser: Any, cls: type, one: Field[Any]) -> None:
    """Add the option of a field to a parser or a group of its options.

    A number's default is said behind the field's docstring. Raises TypeError for a type that no
    option has.
    """
    kind, default = get_type_hints(cls)[one.name], _default(one)
    more: dict[str, Any] = {"help": _help(cls, one, default).replace("%", "%%")}
    if kind is bool:
        parser.add_argument(f"--{one.name}", action="store_true", **more)
        return
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
        more["nargs"] = "+"
    if get_origin(kind) is Literal:
        more["choices"] = list(get_args(kind))
    elif callable(kind):
        more["type"] = kind
    else:
        raise TypeError(f"{cls.__name__}.{one.name} has the type {kind}, which is no option's.")
    if metavar := one.metadata.get("metavar"):
        more["metavar"] = metavar
    parser.add_argument(f"--{one.name}", default=default, **more)


def from_namespace(cls: type[T], args: argparse.Namespace | Mapping[str, Any]) -> T:
    """The dataclass with the values of its options; raises what its `__post_init__` does."""
    values = args if isinstance(args, Mapping) else vars(args)
    return cls(**{one.name: values[one.name] for one in option_fields(cls)})


def option_fields(cls: type) -> Iterator[Field[Any]]:
    """The fields that are options: all that are given to its constructor."""
    return (one for one in fields(cls) if one.init)  # type: ignore[arg-type]


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default


def _help(cls: type, one: Field[Any], default: Any) -> str:
    said = " ".join(get_attribute_docstring(cls, one.name).docstring_below.split())
    if isinstance(default, int | float) and not isinstance(default, bool):
        said += f" ({default:,})"
    return said
