"""The options of a run from words, as they stand behind `sparsify` on a command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from simple_parsing import ArgumentParser

from ..endings import WRONG_USE, prepare, unknown_options
from ..registry import ArchitectureError, asked_architecture, get_architecture
from .config import RunConfig, resolved, run_config_class


def parse_run_config(argv: Sequence[str]) -> RunConfig:
    """The options of a command line. Exits with 2, saying why, if they do not make sense."""
    parser = ArgumentParser(prog="sparsify")
    try:
        asked = asked_architecture(argv)
        cls = run_config_class(get_architecture(RunConfig.arch if asked is None else asked))
        parser.add_arguments(cls, dest="run")
        prepare(parser)
        return resolved(parser.parse_args(list(argv)).run)
    except ValueError as error:
        unknown = [] if isinstance(error, ArchitectureError) else unknown_options(parser, argv)
        if unknown:  # why something seems to be missing
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        print(f"sparsify: error: {error}", file=sys.stderr)
        raise SystemExit(WRONG_USE) from None
