"""The report as one HTML file that asks no network for anything and runs no script but its own.

```
<script type="application/json" id="facts">      overview, trust, nulls: as it is, escaped
<script type="application/gzip" id="table">      columns of the table: gzip, base64
<script type="application/gzip" id="details-0">  details of some latents: gzip, base64
```

Text from models and corpora is only in these blocks, and the page's script puts it into the
document as text. The content security policy allows one script and one style by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib.resources import files
from typing import Any

from sparsify_crosscoder.evaluation.latent_card import LatentCard

from ..explaining.features import COLUMNS
from .answer import answer, picture_files
from .data import ReportData
from .overview import overview
from .sheets import Latent, Sheet
from .statements import KINDS, model_names, null_values, statements

SCRIPTS = ("text", "data", "charts", "table", "overview", "feature", "main")
"""Files of the page's script, in order."""

GROUP = 1 << 18  # characters of details that are unpacked together
LEVEL = 6  # of gzip
DIGITS = 6  # of numbers, where more would only make the file larger
NOT_SHOWN = ("name",)
NULL_VALUES = (
    *("score", "blinded_score", "spread", "interpretability"),
    *("likeness", "likeness_spread", "effect"),
)


def html_report(data: ReportData) -> Iterator[str]:
    """The file in parts, ASCII throughout."""
    script, style = _script(), _asset("report.css")
    template = _asset("template.html")
    policy = (
        "default-src 'none'; "
        f"script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    title = _ascii(html.escape(data.title))
    filled = {"policy": policy, "title": title, "style": style, "script": script}
    head, rest = (_fill(part, filled) for part in template.split("<!-- data -->"))
    yield head
    groups: list[list[int]] = []
    yield from _details(data, groups)
    yield _packed("table", _table(data))
    facts = {**_facts(data), "groups": groups}
    yield f'<script type="application/json" id="facts">{escaped_json(facts)}</script>\n'
    yield rest


def escaped_json(value: Any) -> str:
    """JSON in ASCII without a character that means something to HTML or ends a line of JavaScript.

    Numbers that are not finite are null, others are cut to six digits.
    """
    text = json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _facts(data: ReportData) -> dict[str, Any]:
    """What the page knows from the start."""
    return {
        "title": data.title,
        "created": data.created,
        "models": model_names(data),
        "judged": data.judged,
        "warnings": data.warnings,
        "answer": [one._asdict() for one in answer(data)],
        "pictures": picture_files(),
        "overview": [_sheet(one) for one in overview(data)],
        "trust": [asdict(one) for one in statements(data)],
        "nulls": [
            {
                kind: {what: null_values(data, s, kind, what) for what in NULL_VALUES}
                for kind in KINDS
            }
            for s in range(len(data.models))
        ],
        "kept_by_chance": [asdict(one) for one in data.nulls],
    }


def _sheet(sheet: Sheet) -> dict[str, Any]:
    rows = [
        [{"latent": cell.index} if isinstance(cell, Latent) else cell for cell in row]
        for row in sheet.rows
    ]
    return {"title": sheet.title, "note": sheet.note, "head": sheet.head, "rows": rows}


def _table(data: ReportData) -> dict[str, Any]:
    """Columns by name, each with its meaning; strings that repeat are numbers in a list of them."""
    columns = {}
    for name, (kind, meaning) in COLUMNS.items():
        if name in NOT_SHOWN:
            continue
        values = data.features[name].to_pylist()
        column: dict[str, Any] = {"kind": kind, "meaning": meaning, "values": values}
        distinct = {value: None for value in values if value is not None}
        if kind == "string" and len(distinct) * 4 < len(values):
            places = {value: place for place, value in enumerate(distinct)}
            column["levels"] = list(distinct)
            column["values"] = [None if value is None else places[value] for value in values]
        columns[name] = column
    return {"rows": data.features.num_rows, "columns": columns}


def _details(data: ReportData, groups: list[list[int]]) -> Iterator[str]:
    """Blocks of details; which latents each has is added to `groups`."""
    group: list[str] = []
    latents: list[int] = []

    def block() -> str:
        text = _packed(f"details-{len(groups)}", "[" + ",".join(group) + "]")
        groups.append(list(latents))
        group.clear()
        latents.clear()
        return text

    detailed = set(data.detailed)
    rows = {row["latent"]: row for row in data.features.to_pylist() if row["latent"] in detailed}
    for latent in data.detailed:
        detail = data.details(latent)
        if detail is None:
            continue
        group.append(escaped_json({**vars(detail), "card": LatentCard.of(rows[latent]).lines()}))
        latents.append(latent)
        if sum(map(len, group)) >= GROUP:
            yield block()
    if group:
        yield block()


def _packed(name: str, content: Any) -> str:
    """A block of JSON, or of what is JSON already, compressed to the same bytes every time."""
    text = content if isinstance(content, str) else escaped_json(content)
    packed = gzip.compress(text.encode("ascii"), LEVEL, mtime=0)
    coded = base64.b64encode(packed).decode("ascii")
    return f'<script type="application/gzip" id="{name}">{coded}</script>\n'


def _plain(value: Any) -> Any:
    """The same for JSON: no NaN or infinity, no digits that nobody reads."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled in one go: a value may look like a field."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


def _script() -> str:
    body = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{body}\n}})();\n'


def _asset(name: str) -> str:
    text = (files("delphi_adapters.report") / "page" / name).read_text(encoding="utf-8")
    if not text.isascii():
        raise ValueError(f"{name} must be ASCII, so that its hash is the same in every encoding.")
    return text


def _ascii(text: str) -> str:
    """Text with references for all that is not ASCII, and U+FFFD for what no document may have."""
    allowed = (c if c >= " " and not 0xD800 <= ord(c) <= 0xDFFF else "\ufffd" for c in text)
    return "".join(allowed).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
