"""What subcommands share: being found by name, their result and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TypeVar

from .command_options import add_options, read_options
from .endings import AGAIN, DEBUG, did_you_mean, ending, prepare, take_debug
from .files import atomic_write_json
from .surroundings import command_surroundings

T = TypeVar("T")
Options = TypeVar("Options")


@command_surroundings()
def dispatch(
    program: str, commands: Mapping[str, tuple[str, str, str]], argv: Sequence[str] | None = None
) -> None:
    """Call the subcommand that the first argument names with the other arguments.

    `commands` gives the module, the function and a description of each. The process exits with 0,
    1 (failed) or 2 (wrong use).
    """
    argv, debug = take_debug(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {program} SUBCOMMAND ...\n")
        for name, (_, _, description) in commands.items():
            print(f"  {name:<11} {description}")
        print(f"\n{program} SUBCOMMAND --help lists the options of one.")
        raise SystemExit(0 if argv else 2)
    if argv[0] not in commands:
        known = ", ".join(commands)
        print(
            f"{program}: error: unknown subcommand '{argv[0]}'; there are {known}."
            f"{did_you_mean(argv[0], commands)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    module, function, _ = commands[argv[0]]
    with ending(f"{program} {argv[0]}", debug=debug):
        getattr(import_module(module), function)([*argv[1:], *([DEBUG] if debug else [])])


def run_command(
    program: str,
    options: type[Options],
    run: Callable[[Options], T],
    argv: Sequence[str],
    *,
    goes_on: str = AGAIN,
) -> T:
    """Run a command whose options are those of a dataclass, `json` among them; see `execute`.

    The dataclass's docstring is the command's description.
    """
    parser = argparse.ArgumentParser(prog=program, description=options.__doc__)
    add_options(parser, options)

    def read_and_run(args: argparse.Namespace) -> T:
        return run(read_options(options, vars(args)))

    return execute(parser, read_and_run, argv, goes_on=goes_on)


def execute(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], T],
    argv: Sequence[str],
    *,
    goes_on: str = AGAIN,
) -> T:
    """Run a command that has an option `--json`, write its result there and return it.

    The process ends as `ending` says where it fails; `goes_on` says what the same command does
    after an interrupt.
    """
    argv, debug = take_debug(argv)
    prepare(parser)
    with ending(parser.prog, goes_on=goes_on, debug=debug):
        args = parser.parse_args(argv)
        result = run(args)
        if args.json is not None:
            atomic_write_json(args.json, result)
    return result


def option_groups(tokens: Sequence[str]) -> list[list[str]]:
    """Each option of a command line with its values."""
    found: list[list[str]] = []
    for token in tokens:
        if token.startswith("--") or token == "-h" or not found:
            found.append([])
        found[-1].append(token)
    return found


def split_options(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """What stands first and is no option, a parser's own options, and those of other commands."""
    names: list[str] = []
    rest = list(argv)
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    own, others = [], []
    known = parser._option_string_actions
    for group in option_groups(rest):
        (own if group[0].partition("=")[0] in known else others).extend(group)
    return names, own, others
