"""What the commands that ask a judge share: its options, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sparsify_crosscoder.command_line import run_command
from sparsify_crosscoder.command_options import option

from ..clients.judge import NO_JUDGE, JudgeConfig, Provider
from ..clients.stopping import GOES_ON

Options = TypeVar("Options")


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, what it may cost and how much is asked at a time."""

    judge: str | None = None
    """a Claude model, asked with the key in ANTHROPIC_API_KEY; openai:NAME, asked with that in
    OPENAI_API_KEY; or the folder or name of a local chat model"""

    provider: Provider | None = None
    """where the judge is (anthropic if its name begins with claude)"""

    base_url: str | None = None
    """of another server that speaks the API, such as OpenRouter's, vLLM's or llama.cpp's; one on
    this machine needs no key and no --max_cost"""

    dry_run: bool = False
    """print the cost and stop"""

    max_cost: float | None = None
    """dollars at most, for good"""

    prices: Path | None = None
    """JSON file: {MODEL: {"input": 1.0, "output": 5.0}}, dollars per million tokens"""

    batch: bool = False
    """by Message Batches, at half price"""

    judge_answers: Path | None = None
    """folder for the judge's answers (OUT/answers)"""

    max_tokens: int | None = None
    """of an answer (1,024; local models 512)"""

    concurrency: int = JudgeConfig.concurrency
    """requests at a time ({default})"""

    max_concurrent: int | None = None
    """items at a time (fits the judge)"""

    def config(self, device: str | None = None, *, trust_remote_code: bool = False) -> JudgeConfig:
        """The judge; `device` and `trust_remote_code` are of a local one."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "dry_run"}
        return JudgeConfig(**given, device=device, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class NamedJudge(JudgeOptions):
    """Of a command that has nothing to do without a judge."""

    judge: str = option()


@dataclass(frozen=True)
class JudgeOrNone(JudgeOptions):
    """Of a command that does without a judge unless one is named."""

    judge: str = NO_JUDGE
    """a Claude model, asked with the key in ANTHROPIC_API_KEY; openai:NAME, asked with that in
    OPENAI_API_KEY; the folder or name of a local chat model; none: nobody is asked ({default})"""


def run_asking_command(
    program: str,
    options: type[Options],
    run: Callable[[Options], Mapping[str, Any]],
    argv: Sequence[str],
) -> None:
    """Run a command whose result says under "stopped" why the judge was stopped, if it was.

    The process exits with 0, 1 (failed or stopped) or 2 (wrong use).
    """
    result = run_command(program, options, run, argv, goes_on=GOES_ON)
    if result["stopped"] is not None:
        print(f"{program}: stopped: {result['stopped']}", file=sys.stderr)
        raise SystemExit(1)
