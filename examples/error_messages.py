"""Print every message with which the packages refuse or fail, by the file that says it.

`python examples/error_messages.py` reads the source; nothing is imported, so it needs no package.
"""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("sparsify_crosscoder", "delphi_adapters")


class Message(NamedTuple):
    """One message of the source."""

    file: str
    """Relative to the repository."""

    line: int
    error: str
    """Name of the exception, or of the function that makes it."""

    text: str
    """As it is read, with what is filled in between angle brackets."""


def messages() -> list[Message]:
    """Every message that is written where an exception is raised, in the order of the files."""
    return [
        Message(str(path.relative_to(ROOT)), node.lineno, _name(node.exc.func), text)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if len(text := " ".join(_text(node.exc.args[0]).split()).strip()) > len("<message>")
    ]


def error_classes() -> set[str]:
    """Names of the public exceptions that the packages define."""
    found = {"Exception"}
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    ]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while True:
        more = {c.name for c in classes if {_name(base) for base in c.bases} & (found | _BUILT_IN)}
        if more <= found:
            return {name for name in found - {"Exception"} if not name.startswith("_")}
        found |= more


def page() -> str:
    """All messages as Markdown, a section for each file."""
    lines = ["# Every message", ""]
    lines += ["Made from the source. `<...>` stands for what is filled in.", ""]
    file = ""
    for message in messages():
        if message.file != file:
            file = message.file
            lines += ["", f"## {file}", ""]
        lines.append(f"- `{message.error}`: `` {message.text.replace('`', chr(39))} ``")
    return "\n".join(lines) + "\n"


_BUILT_IN = {
    name
    for name in ("ValueError", "TypeError", "RuntimeError", "OSError", "LookupError", "KeyError")
} | {"ImportError", "IndexError", "BaseException", "SystemExit", "KeyboardInterrupt"}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return (
            f"<{_name(node.value) if isinstance(node.value, (ast.Name, ast.Attribute)) else '...'}>"
        )
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "<...>"


if __name__ == "__main__":
    sys.stdout.write(page())
