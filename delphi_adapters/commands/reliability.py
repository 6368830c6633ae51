"""`python -m delphi_adapters reliability FOLDER`: how far a rubric's ratings can be relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_options import group, option
from sparsify_crosscoder.files import atomic_write_json

from ..judging.reliability import (
    Agreement,
    human_agreement,
    rated_items,
    read_labels,
    sample,
    table,
    write_template,
)
from ..judging.second_rating import rate_again
from .judge_options import JudgeOptions, run_asking_command

RELIABILITY = "reliability.json"


@dataclass(frozen=True)
class Options:
    """Rate a sample of a rubric's answers again, compare ratings with people's, or write a file for
    people to fill in."""

    folder: Path = option(positional=True)
    """folder of the rubric command"""

    judge: JudgeOptions = group(JudgeOptions)

    sample: int = 50
    """answers at most ({default})"""

    sample_seed: int = 0
    """which answers ({default})"""

    judge_temperature: float = 0.0
    """of the judge, where it has one ({default:g})"""

    labels: Path | None = None
    """CSV file with people's scores: item, dimension, score"""

    template: Path | None = None
    """write such a file, without scores, here"""

    device: str | None = None
    """device for a local judge"""

    json: Path | None = None
    """also write everything to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_asking_command("python -m delphi_adapters reliability", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Compare with people's scores and ask again; print both and return everything as JSON."""
    judge = options.judge
    if not (judge.judge or options.labels or options.template):
        raise ValueError(
            "Say what to do: --judge to rate a sample again, --labels to compare with people's "
            "scores, or --template to write a file for these."
        )
    rubric, items = rated_items(options.folder)
    chosen = sample(items, options.sample, options.sample_seed)
    result: dict[str, Any] = {"folder": str(options.folder), "rubric": rubric.name}
    result |= {"items": len(items), "stopped": None}
    # What is wrong with a file of labels should not be found out after the judge was paid.
    people = None if options.labels is None else read_labels(options.labels, rubric, items)
    if options.template is not None:
        write_template(options.template, rubric, chosen)
        print(f"{len(chosen)} items are in '{options.template}', to be given scores by people.")
    if people is not None:
        found = human_agreement(rubric, items, people)
        _print("People and the judge", found)
        result["human"] = {label: asdict(one) for label, one in found.items()}
    if judge.judge is not None:
        second = rate_again(
            judge.config(options.device),
            rubric,
            chosen,
            options.folder,
            temperature=options.judge_temperature,
            dry_run=judge.dry_run,
        )
        if second.agreement is not None:
            _print("The judge asked twice", second.agreement)
        if second.unanswered:
            print(f"{second.unanswered} second ratings could not be had or read.")
        result |= second.to_dict()
    if not judge.dry_run and result["stopped"] is None and ("human" in result or judge.judge):
        atomic_write_json(options.folder / RELIABILITY, result)
    return result


def _print(title: str, found: Mapping[str, Agreement]) -> None:
    print(f"\n{table(title, found)}\n")
