"""Take pictures of an audit's report, for the documentation's gallery.

    python examples/screenshots.py runs/demo-topic --name topic

writes docs/pictures/topic-*.png: the first screen, the page of the first finding's latent, and the
first screen on a dark telephone. Needs playwright and a Chromium without a window (on the PATH, or
CHROMIUM).
"""

import argparse
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from pictures import PICTURES

BROWSERS = "chromium-headless-shell", "chromium", "google-chrome"
MOST_BYTES = 200_000


class View(NamedTuple):
    """One picture of a report."""

    name: str
    address: str
    width: int
    height: int
    scheme: str


VIEWS = (
    View("answer", "#/overview", 1100, 900, "light"),
    View("latent", "#/feature/{latent}", 1100, 900, "light"),
    View("phone", "#/overview", 390, 780, "dark"),
)


def take(report: Path, latent: int, name: str, out: Path) -> list[Path]:
    """Write a picture of each view; raises ValueError where one is too large for a repository."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    files = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for view in VIEWS:
            page = browser.new_page(
                viewport={"width": view.width, "height": view.height},
                color_scheme="dark" if view.scheme == "dark" else "light",
            )
            page.goto(report.resolve().as_uri() + view.address.format(latent=latent))
            page.wait_for_function("document.body.innerText.length > 200")
            files.append(out / f"{name}-{view.name}.png")
            files[-1].write_bytes(_small(page.screenshot()))
            page.close()
        browser.close()
    large = [str(file) for file in files if file.stat().st_size > MOST_BYTES]
    if large:
        raise ValueError(f"Larger than {MOST_BYTES:,} bytes: {', '.join(large)}.")
    return files


def first_latent(audit: Path) -> int:
    """The latent by which the first entry of an audit's list that has one is named; else 0."""
    listed = json.loads((audit / "filter" / "filter.json").read_text(encoding="utf-8"))["rows"]
    return next((row["latent"] for row in listed if row["latent"] is not None), 0)


def _small(png: bytes) -> bytes:
    from PIL import Image

    kept = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(kept, "PNG", optimize=True)
    return kept.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audit", type=Path, help="folder of an audit")
    parser.add_argument("--name", required=True, help="what the pictures begin with")
    parser.add_argument("--latent", type=int, help="whose page is shown; the first finding's")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder to write into")
    args = parser.parse_args(argv)
    report = args.audit / "report.html"
    if not report.exists():
        parser.error(f"'{args.audit}' has no report; `make demo` makes two.")
    latent = first_latent(args.audit) if args.latent is None else args.latent
    args.out.mkdir(parents=True, exist_ok=True)
    for file in take(report, latent, args.name, args.out):
        print(f"{file} ({file.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
