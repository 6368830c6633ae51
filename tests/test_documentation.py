"""README and docs: links lead somewhere, pictures are as drawn, and the short is short."""

import re
from pathlib import Path

import pictures
import pytest

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
