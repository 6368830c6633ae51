"""`python -m delphi_adapters reliability FOLDER`: how far a rubric's ratings can be relied on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsify_crosscoder.files import atomic_write_json

from ..clients import AnthropicClient
from ..clients.costs import say_costs
from ..clients.judge import make_client
from ..clients.stopping import Stopped, run_asking
from ..judging.reliability import (
    AGAIN,
    Agreement,
    human_agreement,
    rated_items,
    read_labels,
    repeat,
    repeat_agreement,
    sample,
    table,
    write_template,
)
from ..judging.rubric_runs import Item
from ..judging.rubrics import Rubric
from .judge_options import add_judge_options, execute_asking, judge_config

RELIABILITY = "reliability.json"
SAMPLE = 50


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute_asking(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare with people's scores and ask again; print both and return everything as JSON."""
    if not (args.judge or args.labels or args.template):
        raise ValueError(
            "Say what to do: --judge to rate a sample again, --labels to compare with people's "
            "scores, or --template to write a file for these."
        )
    rubric, items = rated_items(args.folder)
    chosen = sample(items, args.sample, args.sample_seed)
    result: dict[str, Any] = {"folder": str(args.folder), "rubric": rubric.name}
    result |= {"items": len(items), "stopped": None}
    # What is wrong with a file of labels should not be found out after the judge was paid.
    people = None if args.labels is None else read_labels(args.labels, rubric, items)
    if args.template is not None:
        write_template(args.template, rubric, chosen)
        print(f"{len(chosen)} items are in '{args.template}', to be given scores by people.")
    if people is not None:
        found = human_agreement(rubric, items, people)
        result["human"] = _shown("People and the judge", found)
    if args.judge is not None:
        result |= _asked_again(args, rubric, chosen)
    if not args.dry_run and result["stopped"] is None and ("human" in result or args.judge):
        atomic_write_json(args.folder / RELIABILITY, result)
    return result


def _asked_again(args: argparse.Namespace, rubric: Rubric, chosen: list[Item]) -> dict[str, Any]:
    client = make_client(judge_config(args), args.folder, dry_run=args.dry_run)
    prompts = [
        rubric.messages(one.prompt, one.answer, ended=one.ended, note=AGAIN) for one in chosen
    ]
    result: dict[str, Any] = {"judge": args.judge, "estimate": say_costs(client, prompts).to_dict()}
    if args.dry_run:
        return result
    assert client is not None
    second = repeat(
        client,
        rubric,
        chosen,
        args.folder,
        max_concurrent=args.max_concurrent,
        temperature=args.judge_temperature,
    )
    repeats, result["stopped"] = None, None
    try:
        repeats = run_asking(second, client)
    except Stopped as reason:
        result["stopped"] = str(reason)
    if isinstance(client, AnthropicClient):
        result["ledger"] = client.ledger.summary()
    if repeats is not None:
        found = repeat_agreement(rubric, chosen, repeats)
        result["repeat"] = _shown("The judge asked twice", found)
        result["repeat_unanswered"] = sum(not one.scores for one in repeats.values())
        if result["repeat_unanswered"]:
            print(f"{result['repeat_unanswered']} second ratings could not be had or read.")
    return result


def _shown(title: str, found: dict[str, Agreement]) -> dict[str, Any]:
    print(f"\n{table(title, found)}\n")
    return {label: asdict(one) for label, one in found.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m delphi_adapters reliability",
        description="Rate a sample of a rubric's answers again, compare ratings with people's, or "
        "write a file for people to fill in.",
    )
    parser.add_argument("folder", type=Path, help="folder of the rubric command")
    add_judge_options(parser, required=False)
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"answers at most ({SAMPLE})")
    parser.add_argument("--sample_seed", type=int, default=0, help="which answers (0)")
    parser.add_argument(
        "--judge_temperature", type=float, default=0.0, help="of the judge, where it has one (0)"
    )
    parser.add_argument(
        "--labels", type=Path, help="CSV file with people's scores: item, dimension, score"
    )
    parser.add_argument("--template", type=Path, help="write such a file, without scores, here")
    parser.add_argument("--device", default=None, help="device for a local judge")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser
