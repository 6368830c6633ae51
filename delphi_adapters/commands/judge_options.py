"""What the commands that ask a judge share: its options, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_line import execute

from ..clients.judge import JudgeConfig
from ..clients.stopping import GOES_ON


def add_judge_options(parser: Any, *, required: bool = True, default: str | None = None) -> None:
    """Options that say who judges, what it may cost and how much is asked at a time.

    For a parser or a group of its options, which needs an option `--device` too, for a local judge.
    """
    parser.add_argument(
        "--judge",
        required=required and default is None,
        default=default,
        help="a Claude model, asked through the API with the key in ANTHROPIC_API_KEY, or the "
        "folder or name of a local chat model"
        + ("" if default is None else f"; none: nobody is asked ({default})"),
    )
    parser.add_argument(
        "--provider",
        choices=["anthropic", "transformers"],
        help="where the judge is (anthropic if its name begins with claude)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the cost and stop")
    parser.add_argument("--max_cost", type=float, help="dollars at most, for good")
    parser.add_argument(
        "--prices",
        type=Path,
        help='JSON file: {MODEL: {"input": 1.0, "output": 5.0}}, dollars per million tokens',
    )
    parser.add_argument("--batch", action="store_true", help="by Message Batches, at half price")
    parser.add_argument("--answers", type=Path, help="folder for answers (OUT/answers)")
    parser.add_argument("--max_tokens", type=int, help="of an answer (1,024; local models 512)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time (8)")
    parser.add_argument("--max_concurrent", type=int, help="items at a time (fits the judge)")


def judge_config(args: argparse.Namespace) -> JudgeConfig:
    """What the options say of the judge."""
    names = (one.name for one in fields(JudgeConfig))
    return JudgeConfig(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def execute_asking(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], dict[str, Any]],
    argv: Sequence[str],
) -> None:
    """Run a command whose result says under "stopped" why the judge was stopped, if it was.

    The process exits with 0, 1 (failed or stopped) or 2 (wrong use).
    """
    result = execute(parser, run, argv, goes_on=GOES_ON)
    if result["stopped"] is not None:
        print(f"{parser.prog}: stopped: {result['stopped']}", file=sys.stderr)
        raise SystemExit(1)
