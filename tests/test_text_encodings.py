"""Text files and what other processes write are UTF-8, whatever the locale says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("sparsify_crosscoder", "delphi_adapters", "examples", "tests")
CANDIDATE = re.compile(r"read_text\(|write_text\(|open\(|TemporaryFile\(|text=|newlines=")
MODE = re.compile(r"[rwaxbt+]{1,3}")


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text without saying in which encoding."""
    if not CANDIDATE.search(source):
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sorted(call.lineno for call in calls if _opens_text(call) and not _says(call))


def _opens_text(call: ast.Call) -> bool:
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    places, given = call.args, {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("run", "Popen", "check_output", "check_call"):
        return any(_true(given.get(key)) for key in ("text", "universal_newlines"))
    if name in ("read_text", "write_text"):
        return len(places) == (name == "write_text")
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        mode = _mode(given.get("mode", places[0] if places else None))
        return mode is not None and "b" not in mode
    if name not in ("open", "fdopen"):
        return False
    # Path.open(mode), or open(file, mode); a store's or an image's `open(path)` is another matter.
    if name == "open" and method and (not places or _mode(places[0]) is not None):
        mode = _mode(given.get("mode", places[0] if places else None))
    else:
        mode = _mode(given.get("mode", places[1] if len(places) > 1 else None))
        if method and name == "open" and mode is None:
            return False
    return "b" not in (mode or "r")


def _mode(node: ast.expr | None) -> str | None:
    """The mode of a file that an expression is, if it is one."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) and MODE.fullmatch(value) else None


def _true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _says(call: ast.Call) -> bool:
    return any(keyword.arg in ("encoding", None) for keyword in call.keywords)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_is_opened_with_an_encoding(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in without_encoding(path.read_text(encoding="utf-8"))
    }
    assert not found


def test_what_counts_as_opening_a_text_file():
    opens = """
open(path)
open(path, "w")
path.open()
path.open("a")
path.read_text()
path.write_text(x)
run(command, text=True)
gzip.open(path, "rt")
NamedTemporaryFile("w")
os.fdopen(handle, "w")
"""
    assert len(without_encoding(opens)) == 10
    said = opens.replace(")", ', encoding="utf-8")').replace("(, ", "(")
    assert not without_encoding(said)
    assert not without_encoding(
        'open(path, "rb")\npath.open("wb")\nStore.open(path)\nrun(command)\nos.open(path, flags)\n'
        "path.read_bytes()\ndistribution.read_text('RECORD')\nImage.open(path)\n"
    )
