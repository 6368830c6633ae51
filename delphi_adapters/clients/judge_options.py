"""What the commands that ask a judge share: its options, its client, its price, being stopped."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.command_line import execute

if TYPE_CHECKING:
    from delphi.clients import Client

GOES_ON = "the same command goes on, and no answer is asked for twice"
NO_JUDGE = "none"
"""The judge's name where nobody is asked."""

USUAL_ANSWER = 200  # tokens, for the likely cost
_OF_A_JUDGE = ("provider", "max_cost", "prices", "batch", "answers", "max_tokens")


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


def make_client(args: argparse.Namespace, folder: Path) -> Client | None:
    """The judge that the options ask for; None in a dry run with a local one, which is not loaded.

    Its answers are kept in `--answers`, else below `folder`. Raises ValueError for options that do
    not fit the judge, for a Claude model without `--max_cost`, and without a key.
    """
    check_judge(args)
    if args.judge == NO_JUDGE:
        raise ValueError("This is what a judge is asked for: name one with --judge.")
    from . import AnthropicClient, BatchAnthropicClient
    from .anthropic_client import MissingAPIKey

    for name in ("max_tokens", "concurrency", "max_concurrent"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if is_local(args):
        from . import TransformersClient

        for option in ("batch", "max_cost", "prices"):
            given = getattr(args, option)
            if given is not None and given is not False:
                raise ValueError(f"--{option} is for Claude models; a local model costs nothing.")
        if args.dry_run:
            return None
        return TransformersClient(
            args.judge,
            max_new_tokens=args.max_tokens or 512,
            device=args.device,
            trust_remote_code=getattr(args, "trust_remote_code", False),
        )
    if args.max_cost is None and not args.dry_run:
        raise ValueError(
            "Give --max_cost, the dollars that the judge may cost at most; --dry_run says how many "
            "that will be."
        )
    kind = BatchAnthropicClient if args.batch else AnthropicClient
    try:
        return kind(
            args.judge,
            store=args.answers or folder / "answers",
            prices=args.prices,
            max_cost=args.max_cost,
            max_tokens=args.max_tokens or 1024,
            concurrency=args.concurrency,
        )
    except MissingAPIKey as error:
        raise ValueError(str(error)) from None


def is_local(args: argparse.Namespace) -> bool:
    """Whether the judge is a model on the own machine."""
    if args.provider is not None:
        return args.provider == "transformers"
    return not str(args.judge).startswith("claude")


def check_judge(args: argparse.Namespace) -> None:
    """Raises ValueError for options of a judge where there is none."""
    if args.judge == NO_JUDGE:
        for option in _OF_A_JUDGE:
            given = getattr(args, option)
            if given is not None and given is not False:
                raise ValueError(f"--{option} goes with a judge: name one with --judge.")


def fitting(client: Client) -> int:
    """Items at a time, where each asks for one answer after another."""
    from . import BatchAnthropicClient

    if isinstance(client, BatchAnthropicClient):
        return 20_000
    return 2 * getattr(client, "concurrency", 0) or getattr(client, "batch_size", 8)


def interruptible(work: Awaitable[None], client: Client) -> str | None:
    """Run to the end or until a budget or somebody stops it, and say why it stopped.

    The first interrupt lets requests in flight be answered, since they are paid for.
    """
    from . import AnthropicClient, BatchAnthropicClient, BudgetExceeded, RunStopped

    ledger = None if isinstance(client, BatchAnthropicClient) else getattr(client, "ledger", None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM) if ledger is not None else ()

        def stop() -> None:
            assert ledger is not None
            print("Waiting for the requests in flight; once more to stop at once.", file=sys.stderr)
            ledger.stop()
            for one in signals:
                loop.remove_signal_handler(one)

        def quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if not isinstance(context.get("exception"), BudgetExceeded | RunStopped):
                loop.default_exception_handler(context)

        loop.set_exception_handler(quiet)
        for one in signals:
            with suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread
                loop.add_signal_handler(one, stop)
        await work
        if isinstance(client, AnthropicClient):
            await client.aclose()

    try:
        asyncio.run(main())
    except (BudgetExceeded, RunStopped) as reason:
        return str(reason)
    return None


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


def estimate_costs(
    client: Client | None,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    scale: float = 1.0,
    *,
    what: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Requests, tokens and dollars of `scale` times as many prompts as these; printed too.

    A judge on the own machine is timed, and the seconds are said, for `what` or these requests. No
    client gives the number of requests alone.
    """
    from . import AnthropicClient, Usage

    result: dict[str, Any] = {"requests": round(len(prompts) * scale)}
    line = f"about {result['requests']:,} requests"
    if isinstance(client, AnthropicClient):
        most = client.estimate(prompts)
        requests = [client.request(prompt) for prompt in prompts]
        usual = client.ledger.estimate_usage(
            [
                (one, Usage(input=one.estimated_tokens, output=min(USUAL_ANSWER, one.max_tokens)))
                for one in requests
                if client.store.get(one.key) is None
            ],
            batch=client.batch,
        )
        result |= {
            "input_tokens": round(most.input_tokens * scale),
            "likely_cost": None if usual.cost is None else usual.cost * scale,
            "most_cost": None if most.cost is None else most.cost * scale,
        }
        line += f", {result['input_tokens']:,} tokens of prompts"
        if usual.cost is not None and most.cost is not None:
            line += (
                f", ${result['likely_cost']:,.2f} if answers have {USUAL_ANSWER} tokens and "
                f"${result['most_cost']:,.2f} if all have {client.max_tokens:,}"
            )
    if not quiet:
        from .judge_time import say_time

        print(line, flush=True)
        what = what or f"{result['requests']:,} requests"
        if (seconds := say_time(client, prompts, scale, what)) is not None:
            result["seconds"] = seconds
    return result
