"""The stages that installed packages offer, each after those that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

from sparsify_crosscoder.offered import offered

from .config import AuditConfig
from .stage import Stage

ENTRY_POINT_GROUP = "delphi_adapters.stages"
_OURS = "sparsify-crosscoder"

Kind = type[Stage[Any, Any]]


class StageError(ValueError):
    """A stage's name is taken, it needs what is not there, or its package does not deliver it."""


def stage_kinds() -> list[Kind]:
    """All stages: of those that nothing holds back ours come first, then by package and name.

    Raises StageError where they do not go together, and where ours are not among them.
    """
    found = sorted(offered(ENTRY_POINT_GROUP), key=_listed)
    if not any(entry.dist is not None and entry.dist.name == _OURS for entry in found):
        raise StageError(
            "The stages of an audit are not installed: install sparsify-crosscoder again (in a "
            "checkout, `pip install -e .`), as after an update from before there were any."
        )
    return in_order([_load(entry) for entry in found])


def make_stages(config: AuditConfig) -> list[Stage[Any, Any]]:
    """All stages with their options; raises ValueError where these make no sense."""
    made = [kind(config.stages.get(kind.name) or kind.Options()) for kind in stage_kinds()]
    for stage in made:
        stage.check(judged=config.judged)
    return made


def in_order(kinds: Sequence[Kind]) -> list[Kind]:
    """Stages, each after those that it needs or follows, otherwise as they are listed.

    Raises StageError where two have one name, or where one needs what is not there, or itself.
    """
    names = [kind.name for kind in kinds]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StageError(f"The stage '{twice[0]}' is there more than once: rename all but one.")
    left, ordered = list(kinds), []
    while left:
        taken = {kind.name for kind in ordered}
        ready = (
            one for one in left if taken.issuperset([*one.needs, *set(one.after) & set(names)])
        )
        kind = next(ready, None)
        if kind is None:
            needs = ", ".join(sorted({*left[0].needs} - taken))
            raise StageError(
                f"The stage '{left[0].name}' needs what is not there: {needs}. In a checkout that "
                "was updated, `pip install -e .` again makes new stages known."
            )
        ordered.append(kind)
        left.remove(kind)
    return ordered


def _listed(entry: EntryPoint) -> tuple[bool, str, str]:
    package = entry.dist.name if entry.dist else ""
    return package != _OURS, package, entry.name


def _load(entry: EntryPoint) -> Kind:
    offer = f"The stage '{entry.name}' ({entry.value})"
    try:
        kind = entry.load()
    except Exception as error:
        raise StageError(f"{offer} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Stage)):
        raise StageError(f"{offer} is no subclass of delphi_adapters.audit.stage.Stage.")
    if kind.name != entry.name:
        raise StageError(
            f"{offer} calls itself '{kind.name}': entry point and name must be the same."
        )
    return kind
