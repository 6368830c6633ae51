"""What the source of packages says of how they are built: imports, rooms, sizes.

A room is a package below the top one; modules beside the rooms are the ground floor, but for the
face (`__init__`) and the doors (`__main__`, `_autoload`), through which one enters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

GROUND = "ground floor"
COMMANDS = "commands"
DOORS = ("__main__", "_autoload")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    """One module of ours imports another."""

    importer: str
    imported: str

    typing_only: bool
    """Whether only type checkers see it."""


@dataclass(frozen=True)
class Module:
    """One file of a package."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        """Name of the top package."""
        return self.name.partition(".")[0]

    @property
    def room(self) -> str:
        """Name of the room, "" for the face, the door's own for a door."""
        parts = self.name.split(".")[1:]
        if len(parts) > 1 or (parts and self.path.name == "__init__.py"):
            return parts[0]
        return parts[0] if parts and parts[0] in DOORS else GROUND if parts else ""

    @cached_property
    def functions(self) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """All functions, methods and nested ones included, by qualified name."""
        return list(_functions(self.tree, ""))


def _functions(node: ast.AST, prefix: str) -> Iterator:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (*FUNCTIONS, ast.ClassDef))
        name = f"{prefix}{child.name}" if named else ""  # pyright: ignore
        if isinstance(child, FUNCTIONS):
            yield name, child
        yield from _functions(child, f"{name}." if named else prefix)


def read_modules(root: Path, packages: Iterable[str]) -> dict[str, Module]:
    """All modules of the packages that stand in the folder `root`, by dotted name."""
    found = {}
    for path in sorted(p for package in packages for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return found


def between_modules(found: Iterable[Import], modules: dict[str, Module]) -> set[tuple[str, str]]:
    """Who imports whom, the faces left out: they name all that is public for type checkers."""
    return {(i.importer, i.imported) for i in found if modules[i.importer].room}


def between_rooms(found: Iterable[Import], modules: dict[str, Module]) -> set[tuple[str, str]]:
    """Which room imports which other one, as `package.room`."""
    ends = (
        [f"{modules[name].package}.{modules[name].room}" for name in pair]
        for pair in between_modules(found, modules)
    )
    return {(first, second) for first, second in ends if first != second}


def imports(modules: dict[str, Module]) -> list[Import]:
    """Who imports whom, inside functions and for type checkers only included."""
    return sorted(
        {
            Import(module.name, target, typing_only)
            for module in modules.values()
            for node, typing_only in _import_nodes(module.tree, False)
            for target in _targets(node, module, modules)
            if target != module.name
        }
    )


def _import_nodes(node: ast.AST, typing_only: bool) -> Iterator[tuple[ast.AST, bool]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, typing_only
    checked = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    otherwise = set(map(id, node.orelse)) if isinstance(node, ast.If) else set()
    for child in ast.iter_child_nodes(node):
        only = typing_only or (checked and id(child) not in otherwise)
        yield from _import_nodes(child, only)


def _targets(node: ast.AST, module: Module, modules: dict[str, Module]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    if isinstance(node, ast.ImportFrom):
        here = module.name.split(".")
        here = here if module.path.name == "__init__.py" else here[:-1]
        above = here[: len(here) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            known = (name for name in (f"{base}.{alias.name}", base) if name in modules)
            yield from list(known)[:1]


def circles(found: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Modules, or rooms, that import each other, over others or not: one list for each knot."""
    graph: dict[str, set[str]] = {}
    for importer, imported in found:
        graph.setdefault(importer, set()).add(imported)
        graph.setdefault(imported, set())
    reach = {name: _reached(graph, name) for name in graph}
    knots = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(knot) for knot in sorted(knots)]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - reached
        reached |= new
        left.extend(new)
    return reached


def against_the_order(
    found: Iterable[Import], modules: dict[str, Module], orders: dict[str, tuple[str, ...]]
) -> list[str]:
    """Imports, as "importer -> imported", of what stands above; and rooms that have no place.

    `orders` gives each package's rooms from the ground up; a package may import those named before
    it, and theirs never import it. What a face imports for type checkers only is no matter; its own
    rooms do not import it.
    """
    packages = list(orders)
    faults = []
    for importer, imported, typing_only in found:
        first, second = modules[importer], modules[imported]
        order = orders[first.package]
        if first.room == "" and typing_only:
            continue
        if first.package != second.package:
            wrong = packages.index(second.package) > packages.index(first.package)
        else:
            above = _floor(second.room, order) > _floor(first.room, order)
            wrong = above or second.room == ""
        if wrong:
            faults.append(f"{importer} -> {imported}")
    strangers = [
        f"{m.name} is in no known room"
        for m in modules.values()
        if m.room not in ("", *DOORS, *orders[m.package])
    ]
    return sorted({*faults, *strangers})


def _floor(room: str, order: tuple[str, ...]) -> int:
    """Doors and the face stand on the ground."""
    return order.index(room) if room in order else 0


def who_imports_commands(
    found: Iterable[Import], modules: dict[str, Module], subcommands: Iterable[str]
) -> list[str]:
    """Imports of a commands room from outside, and of one subcommand from another."""
    subcommands = set(subcommands)
    return sorted(
        f"{importer} -> {imported}"
        for importer, imported, _ in set(found)
        if modules[imported].room == COMMANDS
        and (
            modules[importer].room != COMMANDS
            or modules[importer].package != modules[imported].package
            or imported in subcommands
        )
    )


def namespaces(modules: Iterable[Module]) -> list[str]:
    """Modules that name argparse's Namespace."""
    return sorted(
        module.name
        for module in modules
        if any(
            (isinstance(node, ast.Attribute) and node.attr == "Namespace")
            or (isinstance(node, ast.alias) and node.name == "Namespace")
            for node in ast.walk(module.tree)
        )
    )


def long_signatures(modules: Iterable[Module], most: int) -> list[str]:
    """Functions of more parameters than `most`, `self` and `cls` not counted."""
    return sorted(
        f"{module.name}.{name}"
        for module in modules
        for name, function in module.functions
        if _parameters(function) > most
    )


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def lengths(modules: Iterable[Module], names: Iterable[str]) -> dict[str, int]:
    """Lines of the functions whose qualified name is one of `names`."""
    names = set(names)
    return {
        f"{module.name}.{name}": (function.end_lineno or 0) - function.lineno + 1
        for module in modules
        for name, function in module.functions
        if name in names or name.rpartition(".")[2] in names
    }


def room_shares(modules: Iterable[Module]) -> dict[str, float]:
    """Share of all lines that each room has."""
    lines: dict[str, int] = {}
    for module in modules:
        lines[module.room] = lines.get(module.room, 0) + module.text.count("\n")
    return {room: count / sum(lines.values()) for room, count in lines.items()}


def without_docstring(modules: Iterable[Module]) -> list[str]:
    """Modules that say nothing of themselves, empty `__init__` files excepted."""
    return sorted(
        m.name
        for m in modules
        if not (m.path.name == "__init__.py" and not m.text.strip())
        and ast.get_docstring(m.tree) is None
    )
