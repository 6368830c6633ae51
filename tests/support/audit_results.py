"""What an audit left in its folder."""

import base64
import gzip
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from delphi_adapters.audit.stage_list import stage_kinds

STAGES = tuple(kind.name for kind in stage_kinds())
COMPARED = ("explain", "score", "exclusivity", "filter", "stitch")
NOT_RESULTS = ("stage.json", "run_config.json", "hookpoint_firing_counts.pt", "cfg.json")


def results(audit: Path) -> dict[str, Any]:
    """All that an audit found out, without the times that it took."""
    files = {
        str(file.relative_to(audit)): _contents(file)
        for stage in COMPARED
        for file in sorted((audit / stage).rglob("*"))
        if file.is_file() and file.name not in NOT_RESULTS
    }
    blocks = re.findall(
        r'<script type="application/gzip" id="([\w-]+)">(.*?)</script>',
        (audit / "report.html").read_text(encoding="utf-8"),
    )
    pages = {name: json.loads(gzip.decompress(base64.b64decode(block))) for name, block in blocks}
    for detail in pages["details-0"]:
        # Of equal places in the text, which repeats itself, any may be shown.
        detail["contexts"] = [context["activation"] for context in detail["contexts"]]
    return {**files, **pages, "table": pq.read_table(audit / "features.parquet").to_pylist()}


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """Where two results are not the same, up to rounding.

    The last bits of a sum depend on where in memory its terms are.
    """
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        pairs = {f"{place}/{name}": (found[name], expected[name]) for name in expected}
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = {f"{place}/{i}": p for i, p in enumerate(zip(found, expected, strict=True))}
    elif isinstance(expected, float) and isinstance(found, float):
        same = math.isclose(found, expected, rel_tol=2e-3, abs_tol=1e-4)
        return [] if same else [f"{place}: {found}, not {expected}"]
    else:
        return [] if found == expected else [f"{place}: {found!r:.200}, not {expected!r:.200}"]
    return [line for name, pair in pairs.items() for line in differences(*pair, name)]


def _contents(file: Path) -> Any:
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def records(audit: Path) -> dict[str, dict]:
    found = {stage: audit / stage / "stage.json" for stage in STAGES}
    return {
        stage: json.loads(path.read_text(encoding="utf-8"))
        for stage, path in found.items()
        if path.exists()
    }
