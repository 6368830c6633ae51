"""What an audit's folder says of a latent, and which run it is of."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sparsify_crosscoder.evaluation.latent_card import UNKNOWN, LatentCard
from sparsify_crosscoder.runs.run import Run

from ..audit.pipeline import DONE, TABLE
from ..audit.steered import read_steered
from ..judging.results import file_name
from ..report.coherent import coherent_count

SHOWN = {
    "explanation": "explanation",
    "reason": "why it matters",
    "fires_on": "fires on",
    "characteristic_words": "words around",
    "promoted_0": "promotes in A",
    "promoted_1": "promotes in B",
    "suppressed_0": "suppresses in A",
    "suppressed_1": "suppresses in B",
}


class Audited:
    """A finished audit's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def rows(self) -> dict[int, dict[str, Any]]:
        """Rows of the table of latents by latent."""
        return {row["latent"]: row for row in pq.read_table(self.folder / TABLE).to_pylist()}

    @property
    def stitching(self) -> Path | None:
        """The folder of the audit's maps between both models, if it made any."""
        folder = self.folder / "stitch" / "stitching"
        return folder if (folder / "cfg.json").exists() else None

    def facts(self, latent: int) -> list[tuple[str, str]]:
        """What is known of a latent: its description, its verdict, its q, and so on."""
        row = self.rows.get(latent)
        if row is None:
            return []
        told = [(what, str(row[name])) for name, what in SHOWN.items() if row.get(name)]
        card = LatentCard.of(row).lines()
        return told + [(line.what, line.said) for line in card if line.said != UNKNOWN]

    def coherent(self, latent: int) -> float | None:
        """The largest strength at which all steered models still wrote text; None if unknown."""
        row = self.rows.get(latent)
        folder = self.folder / "exclusivity" / "steered"
        if row is None or not (folder / f"{file_name(row['name'])}.partner.json").exists():
            return None
        counts = [
            (one["strengths"], coherent_count(one["strengths"], one["measures"]))
            for one in read_steered(folder, row["name"])
        ]
        return min(strengths[count - 1] for strengths, count in counts)


def open_run(folder: Path, **access: Any) -> tuple[Run, Audited | None]:
    """The run in a folder or of the audit in it, and that audit.

    `access` is that of `Run.open`. Raises FileNotFoundError where there is neither, ValueError for
    an audit that has not written its report yet.
    """
    if not (folder / DONE).exists():
        return Run.open(folder, **access), None
    if not (folder / TABLE).exists():
        raise ValueError(
            f"The audit in '{folder}' has no table of latents yet: start the same `audit` again to "
            "finish it, or name its run."
        )
    options = json.loads((folder / DONE).read_text(encoding="utf-8"))["asked"]["options"]
    run = options.get("run")
    place = folder / "train" / "run" if run in (None, "None") else Path(run)
    return Run.open(place, **access), Audited(folder)
