"""What the site has besides docs: README as its first page, measured tables, commands' help."""

import posixpath
import re
from pathlib import Path
from runpy import run_path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
HELP = "tests/golden/files/help/"


def on_files(files: Files, config) -> Files:
    """Add pages that are kept elsewhere in the repository, and files that they link."""
    kept = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "llms.txt", "CITATION.cff"]
    kept += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "examples").rglob("*.md"))]
    for path in kept:
        files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    said = run_path(str(ROOT / "examples" / "error_messages.py"))["page"]()
    files.append(File.generated(config, "reference/messages.md", content=said))
    for path in sorted((ROOT / HELP).glob("*.txt")):
        text = f"# {path.stem}\n\n```text\n{path.read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, _place(HELP + path.name), content=text))
    linked = set()
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            linked.add(_target(file.src_uri, link[2]))
    for path in sorted(linked):
        if (ROOT / path).is_file() and files.get_file_from_path(_place(path)) is None:
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    for file in files.documentation_pages():
        if file.src_uri.startswith(("examples/", "reference/commands/")):
            file.inclusion = file.inclusion.NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links as they are in the repository become those of the site."""

    def moved(link: re.Match[str]) -> str:
        place = _place(_target(page.file.src_uri, link[2]))
        if files.get_file_from_path(place) is None:
            return link[0]
        return link[1] + posixpath.relpath(place, posixpath.dirname(page.file.src_uri)) + link[3]

    return LINK.sub(moved, markdown)


def _place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path.startswith(HELP):
        return "reference/commands/" + path.removeprefix(HELP).replace(".txt", ".md")
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _target(uri: str, link: str) -> str:
    """The file of the repository that a page links."""
    outside = uri == "index.md" or uri.startswith("examples/")
    here = "" if uri == "index.md" else uri
    if not (outside or uri in ("CONTRIBUTING.md", "CHANGELOG.md")):
        here = "docs/" + uri
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
