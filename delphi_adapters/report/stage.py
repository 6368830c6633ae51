"""The last stage of an audit: one page, and tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_options import option
from sparsify_crosscoder.files import atomic_path

from ..audit.outcome import Cost, Outcome
from ..audit.runner import fingerprint_run
from ..audit.stage import BEGINNING, VERIFICATION, Context, Stage

FIRST = "first.txt"
FILES = ("report.html", "report.md", "features.parquet")


@dataclass
class ReportOptions:
    """What the report compares with."""

    stability_runs: list[Path] = option([], heading=BEGINNING)
    """runs of other seeds to compare"""

    gibberish: bool = option(False, heading=VERIFICATION)
    """also show steered answers that are no text any more"""


class Report(Stage[ReportOptions, None]):
    """Brings everything together and writes the page and the tables."""

    name = "report"
    what = "one page, and tables"
    needs = ("null", "power", "graft", "patch", "equivalence", "baselines", "describe")
    needs += ("exclusivity", "rubrics")
    Options = ReportOptions

    def outside(self) -> dict[str, Any]:
        return {str(run): fingerprint_run(run) for run in self.options.stability_runs}

    def inputs(self, ctx: Context) -> dict[str, Any]:
        shown = {"gibberish": True} if self.options.gibberish else {}
        return {"stability_runs": [str(run) for run in self.options.stability_runs], **shown}

    def estimate(self, ctx: Context) -> Cost:
        return Cost(30.0)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from . import write_report
        from .answer import picture_files
        from .first import first_entries
        from .from_audit import report_data, stability

        runs = self.options.stability_runs
        compared = stability(ctx, runs, folder) if runs else None
        data = report_data(ctx, compared, self.options.gibberish)
        write_report(data, ctx.out)
        written = [folder / FIRST, *(ctx.out / name for name in (*FILES, *picture_files()))]
        with atomic_path(written[0]) as temporary:
            temporary.write_text("\n".join([*first_entries(data), ""]), encoding="utf-8")
        return Outcome(
            {"features": data.features.num_rows, "detailed": len(data.detailed)},
            outputs=written,
            identity=[path.stat().st_size for path in written],
        )
