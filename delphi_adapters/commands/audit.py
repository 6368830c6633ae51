"""`python -m delphi_adapters audit MODEL_A MODEL_B`: from two models' names to a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from sparsify_crosscoder import __version__
from sparsify_crosscoder.endings import ending, take_debug
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json

from ..audit.options import PROG, read_options
from ..audit.plan import NEEDS, STAGES, WHAT
from ..audit.stages import Record, bring_up, fingerprint_path, fingerprint_run, state
from ..clients.stopping import GOES_ON, Stopped

DONE = "audit.json"


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed or stopped) or 2 (wrong use)."""
    argv, debug = take_debug(argv)
    with ending(PROG, goes_on=GOES_ON, debug=debug):
        args = read_options(argv)
        result = run(args)
        if args.json is not None:
            atomic_write_json(args.json, result)
    if result.get("stopped"):
        print(f"{PROG}: stopped: {result['stopped']}", file=sys.stderr)
        raise SystemExit(1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what is missing or changed up to `--until`; returns a summary as JSON values."""
    out, wanted = Path(args.out), STAGES[: STAGES.index(args.until) + 1]
    asked = _asked(args)
    if not args.dry_run and _nothing_to_do(out, asked, wanted):
        print(f"Nothing to do: every stage up to {args.until} is there, from the same inputs.")
        return _show(out, wanted)
    print(f"Audit in '{out}': loading ...", flush=True)
    # Heavy imports, which nothing to do does without.
    from ..audit.stage_table import stage_table
    from ..audit.workspace import Workspace

    if args.dry_run:
        from ..audit.estimates import estimate

        return estimate(Workspace(args), wanted)

    work, table = Workspace(args), stage_table()
    stopped: str | None = None
    for stage in wanted:
        inputs = inputs_of(work, table, stage)
        found = state(out / stage, inputs)
        number = f"{STAGES.index(stage) + 1}/{len(STAGES)}"
        print(f"\n[{number}] {stage}: {WHAT[stage]} ({found})", flush=True)
        try:
            record = bring_up(
                stage, work.out, inputs, lambda folder, s=stage: table[s].do(work, folder)
            )
        except Stopped as reason:
            stopped = str(reason)
            break
        work.records[stage] = record
        if record.unfinished:
            print(f"{stage}: {record.unfinished}; the same command asks again.", file=sys.stderr)
    if stopped is None:
        before = _done(out)
        same = before.get("stages", []) if before.get("asked") == asked else []
        atomic_write_json(
            out / DONE, {"asked": asked, "stages": [s for s in STAGES if s in {*wanted, *same}]}
        )
    return {**_show(out, wanted), "stopped": stopped}


def inputs_of(work: Any, table: Any, stage: str) -> dict[str, Any]:
    """What a stage is made from: its options, and the outputs of the stages that it needs."""
    needed = {name: work.records[name].fingerprint for name in NEEDS[stage] if name in work.records}
    return json.loads(json.dumps({"options": table[stage].inputs(work), "from": needed}))


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, and what of it lies on the disk, as far as that is quick to tell."""
    left_out = ("out", "until", "dry_run", "json", "config", "hf_token", "trust_remote_code")
    options = {k: str(v) for k, v in sorted(vars(args).items()) if k not in left_out}
    named = [*args.models, args.dataset, args.stitching]
    named += [token for token in args.train if not token.startswith("--")]
    named += [args.judge, args.prompts_file, *args.rubrics, *(args.stitch_dataset or [])]
    paths = {str(p): fingerprint_path(p) for p in named if p is not None}
    runs = [args.run, *args.stability_runs]
    paths |= {str(p): fingerprint_run(p) for p in runs if p is not None}
    return json.loads(json.dumps({"version": __version__, "options": options, "paths": paths}))


def _nothing_to_do(out: Path, asked: dict[str, Any], wanted: Sequence[str]) -> bool:
    before = _done(out)
    if before.get("asked") != asked or not set(wanted) <= set(before["stages"]):
        return False
    records = [(stage, Record.read(out / stage)) for stage in wanted]
    return all(record is not None and record.intact(out / stage) for stage, record in records)


class _Done(TypedDict):
    asked: dict[str, Any]
    stages: list[str]


def _done(out: Path) -> dict[str, Any]:
    """What the last audit that came to its end was asked, and which stages are there.

    It only saves time: what cannot be read is written anew at the end.
    """
    try:
        return read_json(out / DONE, _Done, "")
    except (FileNotFoundError, ValueError):
        return {}


def _show(out: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """Print where things are, and return what the stages came to."""
    records = {stage: Record.read(out / stage) for stage in wanted}
    found = {stage: record for stage, record in records.items() if record is not None}
    seconds = sum(record.seconds for record in found.values())
    print(f"\n{len(found)} stages in '{out}', {seconds:,.0f} s of work in all.")
    if "report" in found and found["report"].finished:
        print(f"The report: {out / 'report.html'}; the tables: features.parquet, report.md.")
    return {
        "out": str(out),
        "stages": {
            stage: {"finished": record.finished, "seconds": record.seconds, **record.result}
            for stage, record in found.items()
        },
    }
