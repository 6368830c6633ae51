"""The report's page in a browser: how long opening, sorting, searching and showing a latent take.

    python examples/benchmarks/report.py           two sizes, three minutes
    python examples/benchmarks/report.py --quick   a small one, under a minute

Reports of made-up latents are written and opened from their files in a headless Chromium ($CHROMIUM
or the first on the PATH), in a new context each time. All times are the page's own
(`performance.now`), in milliseconds to the end of the frame that shows the result; medians.

open        from the start of navigation to the overview or the table of latents
latent      from a click on a latent to its page, its details unpacked
sort        a click on a heading; the median of each column, and of these the slowest
search      a word typed at once into the search; the first search prepares the texts
write       seconds that `write_report` takes, once

The script ends with exit code 1 if a claim in `CLAIMS` does not hold; claims are for the size that
they name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from machine import processor
from report_data import made_up_report
from step_report import table

from delphi_adapters.report import write_report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SORTED = (
    "latent",
    "source",
    "explanation",
    "category",
    "exclusivity",
    "detection_score",
    "firings",
)

# Notes when the frame is done that the page says it is ready in.
WHEN_READY = """
window.opened = new Promise((done) => {
  const end = () => requestAnimationFrame(() => setTimeout(() => done(performance.now())));
  const look = () => (document.documentElement?.dataset.ready ? end() : setTimeout(look, 1));
  look();
});
"""
# Time of an act to the end of the next frame in which `shown` finds what it should lead to.
TIMED = """
([act, selector, value, shown]) => new Promise((done) => {
  const start = performance.now();
  const node = document.querySelector(selector);
  if (act === "click") node.click();
  else {
    node.value = value;
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }
  const look = () => requestAnimationFrame(() => setTimeout(() =>
    document.querySelector(shown) ? done(performance.now() - start) : look()));
  look();
})
"""


@dataclass(frozen=True)
class Size:
    """Latents in the table, and how many of them have details."""

    latents: int
    detailed: int


SIZES = [Size(10_000, 10_000), Size(131_072, 2_000)]
QUICK_SIZES = [Size(2_000, 200)]
REPEATS, QUICK_REPEATS = 7, 3
CLAIMS = {"open overview": 3_000, "open latents": 3_000, "sort": 300}
"""Milliseconds that must not be reached with 10,000 latents."""


def measure(browser: Any, size: Size, repeats: int, folder: Path) -> dict[str, Any]:
    """Everything of one size: median milliseconds of each act, seconds of writing, bytes."""
    data = made_up_report(size.latents, size.detailed)
    start = perf_counter()
    write_report(data, folder)
    written = perf_counter() - start
    file = folder / "report.html"
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for act, taken in opened(browser, file.resolve().as_uri()).items():
            times.setdefault(act, []).append(taken)
    medians = {act: median(taken) for act, taken in times.items()}
    sorts = {act: taken for act, taken in medians.items() if act.startswith("sort by")}
    medians["sort"] = max(sorts.values())
    slowest = max(sorts, key=lambda act: sorts[act])
    return {
        **asdict(size),
        "bytes": file.stat().st_size,
        "write_seconds": written,
        "slowest_sort": slowest,
        "ms": medians,
        "all_ms": times,
    }


def opened(browser: Any, address: str) -> dict[str, float]:
    """Milliseconds of one round of everything in a new context."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(WHEN_READY)
    times = {}
    page = context.new_page()
    for name, view in (("open overview", "overview"), ("open latents", "features")):
        page.goto("about:blank")
        page.goto(f"{address}#/{view}")
        times[name] = page.evaluate("window.opened")

    def timed(act: str, selector: str, shown: str, value: str = "") -> float:
        return page.evaluate(TIMED, [act, selector, value, shown])

    for column in SORTED:
        heading = f"th[data-column={column}]"
        times[f"sort by {column}"] = timed("click", f"{heading} button", f"{heading}[aria-sort]")
    for name, word in (("first search", "harbour"), ("search", "vaccine")):
        times[name] = timed("input", "input[type=search]", "tbody tr", word)
    times["latent"] = timed("click", "td.c-latent a", "main.feature .explanation")
    context.close()
    return times


def judge(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was found for every claim."""
    (row,) = (row for row in rows if row["latents"] == 10_000)
    return [
        {"claim": act, "less_than": most, "found": row["ms"][act], "holds": row["ms"][act] < most}
        for act, most in CLAIMS.items()
    ]


def show(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    acts = ["open overview", "open latents", "latent", "sort", "first search", "search"]
    cells = [
        [
            f"{row['latents']:,}",
            f"{row['detailed']:,}",
            f"{row['bytes'] / 1e6:,.1f}",
            f"{row['write_seconds']:,.1f}",
            *(f"{row['ms'][act]:,.0f}" for act in acts),
            row["slowest_sort"].removeprefix("sort by "),
        ]
        for row in report["rows"]
    ]
    head = ["latents", "with details", "MB", "write, s"]
    head += [f"{act}, ms" for act in acts] + ["slowest column"]
    lines = [f"{report['processor']}, {report['browser']}, rounds: {report['repeats']}", ""]
    lines += table(head, cells)
    if report["claims"]:
        cells = [
            [
                claim["claim"],
                f"{claim['less_than']:,}",
                f"{claim['found']:,.0f}",
                "pass" if claim["holds"] else "FAIL",
            ]
            for claim in report["claims"]
        ]
        lines += ["", *table(["10,000 latents, ms", "less than", "found", ""], cells)]
    return "\n".join(lines)


def run(sizes: Sequence[Size], repeats: int) -> dict[str, Any]:
    """Everything that is measured of some sizes, as one report without claims."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        rows = []
        for size in sizes:
            print(f"{size} ...", file=sys.stderr, flush=True)
            rows.append(measure(browser, size, repeats, Path(folder)))
        name = f"Chromium {browser.version}"
        browser.close()
    versions = {
        "python": platform.python_version(),
        **{one: version(one) for one in ("sparsify-crosscoder", "playwright", "pyarrow")},
    }
    report = {"processor": processor(), "browser": name, "versions": versions}
    return {**report, "repeats": repeats, "rows": rows, "claims": []}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small size, under a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    args = parser.parse_args()

    report = run(QUICK_SIZES, QUICK_REPEATS) if args.quick else run(SIZES, REPEATS)
    if not args.quick:
        report["claims"] = judge(report["rows"])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(show(report))
    return int(not all(claim["holds"] for claim in report["claims"]))


if __name__ == "__main__":
    sys.exit(main())
