"""Write llms.txt, a map of the documentation for language models: `python examples/llms.py`.

The form is that of https://llmstxt.org. What it says of a page is the page's first sentence.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "Start": ("docs/start.md", "docs/guides/python.md", "docs/gallery.md"),
    "Guides": "docs/guides",
    "Concepts": "docs/concepts",
    "Results": "docs/results",
    "Reference": "docs/reference",
    "More": (
        "docs/glossary.md",
        "docs/limits.md",
        "docs/paper.md",
        "docs/errors.md",
        "docs/extending.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ),
}


def title_and_sentence(page: Path) -> tuple[str, str]:
    """The heading of a page and the first sentence below it that is prose."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    title = re.search(r"^# (.*)$", text, re.MULTILINE)
    prose = [" ".join(part.split()) for part in text.split("\n\n") if re.match(r"[`*\"A-Z]", part)]
    sentence = re.split(r"(?<=[.?])\s(?=[A-Z`])", prose[0], maxsplit=1)[0] if prose else ""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence).replace("**", "")
    return title[1] if title else page.stem, plain


def llms() -> str:
    """The whole text."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")
    lines = [
        readme[0],
        "",
        "> " + re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(readme[1].split())),
    ]
    listed: set[Path] = set()
    for section, of in SECTIONS.items():
        pages = sorted((ROOT / of).glob("*.md")) if isinstance(of, str) else [ROOT / p for p in of]
        lines += ["", f"## {section}", ""]
        for page in pages:
            if page.exists() and page not in listed:
                listed.add(page)
                title, sentence = title_and_sentence(page)
                lines.append(
                    f"- [{title}]({page.relative_to(ROOT)}): {sentence}".removesuffix(": ")
                )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "llms.txt", help="file to write")
    args = parser.parse_args(argv)
    args.out.write_text(llms(), encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
