"""`python -m delphi_adapters audit MODEL_A MODEL_B`: from two models' names to a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from sparsify_crosscoder import command_options
from sparsify_crosscoder.command_line import option_groups, split_options
from sparsify_crosscoder.command_options import HubOptions, add_options, heading_of
from sparsify_crosscoder.endings import ending, prepare, take_debug
from sparsify_crosscoder.files import atomic_write_json

from ..audit.config import DATASET, OUT, AuditConfig
from ..audit.pipeline import run_audit
from ..audit.stage import BEGINNING, GROUPS, JUDGE
from ..audit.stage_list import Kind, make_stages, stage_kinds
from ..clients.stopping import GOES_ON
from .judge_options import JudgeOrNone
from .option_files import read_option_file

PROG = "python -m delphi_adapters audit"

# What the audit itself decides when it trains.
_SET_BY_THE_AUDIT = ("cache", "partners", "resume", "save_dir", "run_name", "append")


@dataclass(frozen=True)
class AuditCommand:
    """What a command line asks for."""

    config: AuditConfig
    until: str
    dry_run: bool
    json: Path | None


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed or stopped) or 2 (wrong use)."""
    argv, debug = take_debug(argv)
    with ending(PROG, goes_on=GOES_ON, debug=debug):
        result = run(read_options(argv))
    if result.get("stopped"):
        print(f"{PROG}: stopped: {result['stopped']}", file=sys.stderr)
        raise SystemExit(1)


def run(command: AuditCommand) -> dict[str, Any]:
    """Do what is missing or changed, or say what it would take; returns it as JSON values."""
    if command.dry_run:
        print(f"Audit in '{command.config.out}': loading ...", flush=True)
        from ..audit.estimate import estimate_audit

        found = estimate_audit(command.config, command.until)
    else:
        found = run_audit(command.config, command.until)
    print(found.text())
    result = found.to_dict()
    if command.json is not None:
        atomic_write_json(command.json, result)
    return result


def read_options(argv: Sequence[str]) -> AuditCommand:
    """What a command line asks for, with the file that its --config names.

    The process exits with 2 where something does not make sense.
    """
    kinds = stage_kinds()
    parser = make_parser(kinds)
    names, own, train = split_options(parser, argv)
    config = parser.parse_args(own).config
    if config is not None:
        of_file = [*read_option_file(parser, config)]
        file_names, file_own, file_train = split_options(parser, of_file)
        names = names or file_names
        own = [*file_own, *own]
        given = {token.partition("=")[0] for token in train if token.startswith("--")}
        train = [
            token for group in option_groups(file_train) if group[0] not in given for token in group
        ]
        train += split_options(parser, argv)[2]
    args = parser.parse_args(own)
    given = vars(args)
    hub = command_options.read_options(HubOptions, given)
    judge = command_options.read_options(JudgeOrNone, given)
    for name in _SET_BY_THE_AUDIT:
        if any(token.partition("=")[0] == f"--{name}" for token in train):
            parser.error(f"--{name} is set by the audit; leave it off.")
    try:
        config = AuditConfig(
            models=names,
            run=args.run,
            dataset=args.dataset,
            train=train,
            out=args.out,
            hf_token=hub.hf_token,
            trust_remote_code=hub.trust_remote_code,
            judge=judge.config(trust_remote_code=hub.trust_remote_code),
            stages={kind.name: command_options.read_options(kind.Options, given) for kind in kinds},
        )
        make_stages(config)
    except ValueError as error:
        parser.error(str(error))
    return AuditCommand(config, args.until, judge.dry_run, args.json)


def make_parser(kinds: Sequence[Kind]) -> argparse.ArgumentParser:
    """The audit's own options and those of its stages."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} MODEL_A MODEL_B --dataset D [--judge J] [options] [options of training]",
        description="What differs between two language models, from their names to a report: "
        "harvest, train, filter, describe by words and tokens, with a judge also explain and flag, "
        "verify by steering both models, report. Every stage is a folder in --out; what is there "
        "already is not done again. "
        "Options of `sparsify --arch ...`, such as --arch, --hookpoints, --num_latents, --k and "
        "--max_steps, are passed on to training.",
        allow_abbrev=False,
    )
    prepare(parser)
    stages = [kind.name for kind in kinds]
    parser.add_argument("--out", type=Path, default=OUT, help=f"({OUT})")
    parser.add_argument("--config", type=Path, help="YAML file of options, these or of training")
    parser.add_argument("--until", choices=stages, default=stages[-1], help="stop after a stage")
    parser.add_argument("--json", type=Path, help="also write the summary to this file")
    add_options(parser, HubOptions)
    placed = list(_placed(kinds))
    for title in dict.fromkeys([*GROUPS, *(title for title, _, _ in placed)]):
        group = parser.add_argument_group(title)
        if title == BEGINNING:
            group.add_argument(
                "--dataset",
                default=DATASET,
                help="text that both models read, as of `sparsify`, or an activation store",
            )
            group.add_argument("--run", type=Path, help="a trained run, instead of the two models")
        if title == JUDGE:
            add_options(group, JudgeOrNone)
        for _, cls, one in (option for option in placed if option[0] == title):
            add_options(group, cls, [one])
    return parser


def _placed(kinds: Sequence[Kind]) -> Iterator[tuple[str, type, Field[Any]]]:
    """Each option with its heading: under every one those of its own stages come first."""
    guests = []
    for kind in kinds:
        for one in fields(kind.Options):
            place = heading_of(one)
            if place is None:
                yield kind.group or kind.name, kind.Options, one
            else:
                guests.append((place, kind.Options, one))
    yield from guests
