"""What the simplest methods find of organisms' known differences, and what they cost.

    python examples/benchmarks/simple_methods.py --out runs/organism-table
    python examples/benchmarks/simple_methods.py --organisms topic --read   # single tokens as well

From the stores of the organisms' table (`organisms.py`, which makes what is not there): base
against organism, every method's first entry that concerns the behaviour. A text concerns it as in
that table; a token or a direction if at least 80% of the texts that show it most do, ten at most.
In brackets the share of texts that do: a random order of texts has the first at about its inverse.
With `--read` the models read the text once more, which tells single tokens and what a pass costs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# The demo's modules; before this folder, one of whose files has the name of their package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from demo_models import ensure_demo_models
from organism_runs import harvested
from organism_settings import TEXT_KINDS, Bench, Case
from organism_texts import concerned, texts_file
from organisms import ORGANISMS, find
from step_report import table

from sparsify_crosscoder.evaluation.baselines.comparing import baselines_of_store, run_baselines
from sparsify_crosscoder.evaluation.baselines.found import METHODS, Baselines
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.texts import load_run_texts

RIGHT = 0.8
"""Share of an entry's texts that concern the behaviour."""


def first_ranks(found: Baselines, concerns: Sequence[bool]) -> dict[str, int | None]:
    """By method, the rank of the first entry that concerns the behaviour; None where none does.

    `concerns` says of every text, by its number, whether it does.
    """
    ranks: dict[str, int | None] = {}
    for method in METHODS:
        order = found.orders.get(method)
        if order is not None:
            places = (rank for rank, text in enumerate(order, 1) if concerns[text])
            ranks[method] = next(places, None)
            continue
        right = (
            one.rank
            for one in found.of(method)
            if one.texts and sum(concerns[t] for t in one.texts) >= RIGHT * len(one.texts)
        )
        ranks[method] = next(right, None)
    return ranks


def row_of(case: Case, read: bool) -> list[str]:
    """A line of the table."""
    harvest = harvested(case)
    model, file = case.first, texts_file(case.bench, case.organism, case.text)
    words = [model, str(file), "--partners", case.bench.partner(case.organism)]
    config = parse_run_config(words)
    if read:
        found = run_baselines(config, pick_device(config.device))
    else:
        found = baselines_of_store(harvest.store, load_run_texts(config))
    concerns = concerned(case.organism, harvest.texts)
    seconds = found.seconds
    ranks = first_ranks(found, concerns.tolist())
    cells = ["-" if ranks[method] is None else str(ranks[method]) for method in METHODS]
    share = float(concerns.double().mean())
    reading = f"{seconds['reading']:.0f}"
    return [
        *(f"{case.organism.name} ({share:.0%})", case.text, *cells),
        *(reading, f"{sum(seconds.values()) - seconds['reading']:.0f}"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, line by line as it is made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    every = [organism.name for organism in ORGANISMS]
    parser.add_argument("--organisms", nargs="+", choices=every, default=every)
    parser.add_argument("--texts", nargs="+", choices=TEXT_KINDS, default=["both", "neither"])
    parser.add_argument("--read", action="store_true", help="with the models, not from the store")
    parser.add_argument("--models", type=Path, default=Path("runs/demo-data/models"))
    parser.add_argument("--out", type=Path, default=Path("runs/organism-table"))
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    bench = Bench(*ensure_demo_models(args.models), args.out)
    head = ["organism", "text", *METHODS, "reading, s", "the rest, s"]
    rows = []
    for name in args.organisms:
        for kind in args.texts:
            rows.append(row_of(Case(bench, find(name), "base", kind), args.read))
            print("\n".join(table(head, rows)), flush=True)
    if args.json:
        atomic_write_json(args.json, {"head": head, "rows": rows})


if __name__ == "__main__":
    main()
