"""README and docs: links lead somewhere, pictures are as drawn, and the short is short."""

import importlib
import inspect
import re
from pathlib import Path

import error_messages
import llms
import pictures
import pytest
import screenshots

import delphi_adapters
import sparsify_crosscoder
from delphi_adapters.__main__ import COMMANDS as ADAPTERS
from sparsify_crosscoder.__main__ import COMMANDS
from tests.support.markdown import ROOT, pages

LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [*pages(), *sorted((ROOT / "examples").rglob("*.md"))]


def prose(page: Path) -> str:
    """A page without its fenced blocks and quoted code."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].strip("`"), text)


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by, as GitHub and the site spell it."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_is_read_at_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_pictures_are_those_that_the_command_draws(tmp_path):
    assert pictures.main(["--out", str(tmp_path)]) == 0
    drawn = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    kept = {file.name: file.read_bytes() for file in pictures.PICTURES.glob("*.svg")}
    assert drawn == kept


def test_the_map_for_language_models_is_as_its_command_writes_it():
    assert (ROOT / "llms.txt").read_text(encoding="utf-8") == llms.llms()


def test_every_page_begins_with_a_sentence():
    for page in pages():
        assert re.match(r"# .+\n\n[A-Z`].", page.read_text(encoding="utf-8")), page


PUBLIC = [(sparsify_crosscoder, name) for name in sparsify_crosscoder.__all__]
PUBLIC += [(delphi_adapters, name) for name in delphi_adapters.__all__]
NAMES = [(package, name) for package, name in PUBLIC if name != "__version__"]


def undocumented(owner: object, name: str) -> list[str]:
    """Public members of ours without a docstring, itself among them."""
    found = [] if (inspect.getdoc(owner) or "").strip() else [name]
    for member, value in vars(owner).items() if inspect.isclass(owner) else ():
        function = value.fget if isinstance(value, property) else getattr(value, "func", value)
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not member.startswith("_") and inspect.isfunction(function):
            inherited = inspect.getdoc(getattr(owner, member))
            if not (function.__doc__ or inherited or "").strip():
                found.append(f"{name}.{member}")
    return found


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_public_name_is_documented_and_on_the_page_of_the_reference(package, name):
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert f"::: {package.__name__}.{name}\n" in page
    found = getattr(importlib.import_module(package.__name__), name, None)
    assert undocumented(found or importlib.import_module(f"{package.__name__}.{name}"), name) == []


def test_what_has_no_docstring_is_found():
    class Bare:
        def said(self):
            """Says."""

        def unsaid(self):
            return None

        @property
        def nothing(self):
            return None

    assert undocumented(Bare, "Bare") == ["Bare", "Bare.unsaid", "Bare.nothing"]


def test_every_command_is_on_the_page_of_commands():
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named == {*COMMANDS, *ADAPTERS}


def test_every_kind_of_error_is_on_the_page_of_errors():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert {name for name in error_messages.error_classes() if f"`{name}`" not in page} == set()


def test_what_the_page_of_errors_quotes_is_said_by_the_code():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| ([^`|][^|]*) \| [^|]+ \|$", page, re.MULTILINE)
    source = " ".join(
        re.sub(r"\"\s*\n\s*f?\"", "", path.read_text(encoding="utf-8"))
        for package in error_messages.PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    )
    parts = [
        part.strip(" '")
        for one in quoted
        if one not in ("you read", "error")
        for part in re.split(r"\.\.\.|; |, ", one)
    ]
    assert len(parts) > 40
    assert [part for part in parts if part and part not in source] == []


def test_messages_are_read_from_the_source():
    found = error_messages.messages()
    said = {message.text for message in found}
    assert "Stability compares two runs or more, got <...>." in said
    assert error_messages.page().count("\n- `") == len(found) > 300


def test_pictures_of_reports_are_small_and_in_the_gallery():
    kept = sorted(pictures.PICTURES.glob("*.png"))
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert len(kept) >= 6 and all(file.name in page for file in kept)
    assert all(file.stat().st_size <= screenshots.MOST_BYTES for file in kept)
    assert sum(file.stat().st_size for file in kept) < 1_000_000


def test_a_folder_without_a_report_has_no_pictures(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        screenshots.main([str(tmp_path), "--name", "a", "--out", str(tmp_path)])
    assert stop.value.code == 2 and "has no report" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
