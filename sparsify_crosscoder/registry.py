"""Architectures by name: those registered in this process and those that installed packages offer.

A package offers one through an entry point in the group `sparsify.trainers` whose object is an
`Architecture`. Only the entry point that is asked for is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from typing import Any

from .endings import WRONG_USE
from .offered import offered

ENTRY_POINT_GROUP = "sparsify.trainers"


class ArchitectureError(ValueError):
    """An architecture's name is unknown or taken, or its package does not deliver it."""


@dataclass(frozen=True)
class Architecture:
    """One kind of crosscoder: all that differs from the others, to train, save and load it."""

    name: str
    """What `--arch` and a checkpoint's `cfg.json` call it."""

    config_class: type
    """Dataclass of the coder's own hyperparameters; its fields become command line flags."""

    coder_class: type
    """The `Crosscoder` subclass that is trained."""

    trainer_class: type | None = None
    """The `CrosscoderTrainer` subclass that trains it; None for `CrosscoderTrainer` itself."""

    load_artifacts: Callable[..., Any] | None = None
    """Loads the pairs of a run from its configuration and the device; None for the usual way."""

    description: str = ""
    """One line for `--help`."""


_registered: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """Make an architecture known in this process, under its `name`.

    Raises ArchitectureError where the name is taken, here or by an installed package.
    """
    if not isinstance(architecture, Architecture):
        raise ArchitectureError(
            f"register_architecture takes an Architecture, not {architecture!r}"
        )
    taken_by = _holders(architecture.name)
    if taken_by:
        raise ArchitectureError(
            f"cannot register {_describe(architecture)} as architecture {architecture.name!r}: "
            f"the name is taken by {' and '.join(taken_by)}; choose another name"
        )
    _registered[architecture.name] = architecture


def get_architecture(name: str) -> Architecture:
    """Find an architecture by name, importing the package that offers it if need be.

    Raises ArchitectureError where the name is unknown, offered by two packages, or where the
    package fails to import or offers something else than an Architecture of that name.
    """
    registered, entries = _registered.get(name), _entry_points(name)
    if registered is None and not entries:
        raise ArchitectureError(_unknown(name))
    if (registered is not None) + len(entries) > 1:
        raise ArchitectureError(
            f"architecture {name!r} is offered more than once: by "
            f"{' and by '.join(_holders(name))}; uninstall or rename all but one"
        )
    return _load(*entries) if registered is None else registered


def architecture_names() -> list[str]:
    """Names of all known architectures, sorted; imports none of them."""
    return sorted({*_registered, *(entry.name for entry in _entry_points())})


def asked_architecture(argv: Sequence[str]) -> str | None:
    """The name that a command line gives with `--arch`."""
    for i, arg in enumerate(argv):
        if arg.startswith("--arch="):
            return arg.removeprefix("--arch=")
        if arg == "--arch" and i + 1 < len(argv):
            return argv[i + 1]
    return None


def refuse_unknown_architecture(argv: Sequence[str]) -> None:
    """Exit with 2 where a command line asks for an architecture that nobody offers.

    Needs nothing of torch, whose import takes seconds.
    """
    name = asked_architecture(argv)
    if name is not None and name not in _registered and not _entry_points(name):
        print(f"sparsify: error: {_unknown(name)}", file=sys.stderr)
        raise SystemExit(WRONG_USE)


def _entry_points(name: str | None = None) -> list[EntryPoint]:
    found = offered(ENTRY_POINT_GROUP)
    return [entry for entry in found if name is None or entry.name == name]


def _holders(name: str) -> list[str]:
    holders = [_describe(_registered[name])] if name in _registered else []
    return holders + [_distribution(entry) for entry in _entry_points(name)]


def _describe(architecture: Architecture) -> str:
    coder = architecture.coder_class
    return f"{coder.__module__}.{coder.__qualname__}"


def _distribution(entry: EntryPoint) -> str:
    where = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
    return f"{where} ({entry.value})"


def _unknown(name: str) -> str:
    known = architecture_names()
    close = get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    listed = ", ".join(known) or "none: is sparsify-crosscoder installed?"
    return f"unknown architecture {name!r}.{hint} Known architectures: {listed}"


def _load(entry: EntryPoint) -> Architecture:
    try:
        architecture = entry.load()
    except Exception as error:
        raise ArchitectureError(
            f"{_offer(entry)} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(architecture, Architecture):
        raise ArchitectureError(
            f"{_offer(entry)} is not a sparsify_crosscoder.Architecture but a "
            f"{type(architecture).__name__}"
        )
    if architecture.name != entry.name:
        raise ArchitectureError(
            f"{_offer(entry)} calls itself {architecture.name!r}: entry point and name must be "
            "the same"
        )
    return architecture


def _offer(entry: EntryPoint) -> str:
    return f"architecture {entry.name!r} offered by {_distribution(entry)}"
