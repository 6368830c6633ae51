"""English text for the demo, from what ships inside every CPython.

The text is the Python language reference (`pydoc_data.topics`, what `help("assert")` prints) and
the docstrings of the standard library. Why this one: every machine that can run the demo has it
already, so that neither a download, a hub account nor root is needed; its licence (PSF) allows
any use; and once code, doctests and grammar are left out it is edited English prose, some 350,000
to 380,000 tokens of it. It is narrow, of course: the features found on it are those of technical
English.

Only source files are read, by `ast`: no module is imported for the sake of its docstrings.

    python examples/demo_text.py PATH.jsonl
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import sys
import sysconfig
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_CHARACTERS = 4000
"""Longest document written; longer ones are split between paragraphs."""

MIN_CHARACTERS = 200
"""Shortest document written."""

_FOLDERS = """
    test tests idlelib lib2to3 encodings turtledemo pydoc_data site-packages dist-packages
    lib-dynload _bundled __phello__ __pycache__
"""
SKIPPED_FOLDERS = frozenset(_FOLDERS.split())

_WORDS = """
    a about after all also an and any are as at be been before but by can do does each for from has
    have if in into is it its may more must no not of on one only or other should so such than that
    the their them then there these they this to use used was when where which will with you
"""
FUNCTION_WORDS = frozenset(_WORDS.split())


def write_demo_texts(path: Path) -> int:
    """Write the demo's English documents to `path`, one JSON object {"text": ...} per line.

    Returns the number of documents. The same Python release always gives the same file; documents
    are shuffled with a fixed seed, so that any part of the file is a fair sample of the whole.
    Paragraphs that stand in several places are kept once.

    Raises RuntimeError when this Python ships without the sources of its standard library.
    """
    path = Path(path)
    seen: set[str] = set()
    documents = [
        document
        for raw in (*_language_reference(), *_standard_library_docstrings())
        for document in split_document(_fresh(english_paragraphs(raw), seen))
    ]
    if not documents:
        raise RuntimeError(
            f"No documentation was found in {sysconfig.get_path('stdlib')}: this Python ships "
            "without the sources of its standard library. Use a full CPython, or another dataset."
        )
    random.Random(0).shuffle(documents)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    os.chmod(scratch, 0o644)  # mkstemp makes files that only their owner can read
    os.replace(scratch, path)
    return len(documents)


def _language_reference() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return []
    return [topics[name] for name in sorted(topics)]


def _standard_library_docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for name in names:
        generated = "_sysconfigdata" in name
        if not generated and SKIPPED_FOLDERS.isdisjoint(name.split("/")):
            yield "\n\n".join(docstrings((root / name).read_bytes()))


def docstrings(source: bytes) -> list[str]:
    """The docstrings of a module's source in their order there; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):  # which has none
                visit(child)

    visit(tree)
    return [text for text in found if text]


def english_paragraphs(text: str) -> list[str]:
    """The paragraphs of `text` that are English prose, their hard-wrapped lines joined."""
    paragraphs = (_unwrap(paragraph) for paragraph in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs if is_english(paragraph)]


def is_english(paragraph: str) -> bool:
    """Whether a paragraph reads as English: five words or more, enough of them function words.

    Code, doctests, grammar productions, tables and headings fall through.
    """
    if ">>>" in paragraph or "::=" in paragraph:
        return False
    tokens = paragraph.split()
    bare = (token.strip("\"'`*.,:;!?()[]-") for token in tokens)
    words = [token for token in bare if re.fullmatch(r"[A-Za-z]+(['\u2019-][A-Za-z]+)*", token)]
    if len(words) < max(5, 0.6 * len(tokens)):
        return False
    return sum(word.lower() in FUNCTION_WORDS for word in words) >= 0.2 * len(words)


def _unwrap(paragraph: str) -> str:
    lines = textwrap.dedent(paragraph).strip("\n").split("\n")
    lines = [line.rstrip() for line in lines if not re.fullmatch(r"\s*[*=~^\-]{3,}\s*", line)]
    wrapped = all(len(line) > 45 for line in lines[:-1])
    level = all(len(line) - len(line.lstrip()) == 0 for line in lines[2:])
    return " ".join(line.strip() for line in lines) if wrapped and level else "\n".join(lines)


def _fresh(paragraphs: Iterable[str], seen: set[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        key = " ".join(paragraph.split())
        if key not in seen:
            seen.add(key)
            yield paragraph


def split_document(paragraphs: Iterable[str]) -> list[str]:
    """Join paragraphs into documents of MIN_CHARACTERS to MAX_CHARACTERS, dropping shorter ones."""
    documents: list[str] = []
    current = ""
    for paragraph in paragraphs:
        for piece in _pieces(paragraph):
            if current and len(current) + 2 + len(piece) > MAX_CHARACTERS:
                documents.append(current)
                current = piece
            else:
                current = f"{current}\n\n{piece}" if current else piece
    documents.append(current)
    return [document for document in documents if len(document) >= MIN_CHARACTERS]


def _pieces(paragraph: str) -> list[str]:
    if len(paragraph) <= MAX_CHARACTERS:
        return [paragraph]
    return textwrap.wrap(paragraph, MAX_CHARACTERS, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's English documents to PATH.")
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    print(f"{write_demo_texts(args.path)} documents written to {args.path}", file=sys.stderr)


if __name__ == "__main__":
    main()
