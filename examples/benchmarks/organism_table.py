"""The table of the organisms' benchmark, one row for each crosscoder, kept as it is made.

For each organism, over prompts of which some concern its behaviour:

text          answers by base and organism, by the base alone, or by a model of another family
pair          the base against the organism; the other family against it, without what is there of
              the base as well
architecture  crosscoders of five kinds, three seeds each

with the place of the first entry of the list of differences that concerns the behaviour: at least
80% of the pairs on which it is present concern it, and it is present in a tenth of the texts that
have such pairs. These are all pairs of a text whose prompt asks for the behaviour or whose answer
shows it; of a style and a word, which concern every answer, the places in an answer. Of organisms
without a behaviour the findings are counted. Beside it are the simplest methods on the same pairs,
and the share of a crosscoder's latents that would pass: a random entry.
With `--causes`, whether that entry causes the behaviour (`organism_cause`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_models import ensure_demo_models
from organism_baselines import Baseline, baselines
from organism_cause import CauseRow, causes_of
from organism_error_rates import error_rate_table, false_share
from organism_runs import harvested, trained
from organism_scores import Row, row_of
from organism_settings import (
    ARCHITECTURES,
    PAIRS,
    QUICK,
    REMEDY,
    TEXT_KINDS,
    Bench,
    Case,
    Scale,
)
from organisms import DEVELOPMENT, NOTHING, ORGANISMS, Organism, find
from step_report import table

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json


def cases(
    bench: Bench, organisms: Sequence[Organism], pairs: Sequence[Any], texts: Sequence[Any]
) -> Iterator[Case]:
    """Every organism beside every model over every kind of text."""
    for organism in organisms:
        for pair in pairs:
            for text in texts:
                yield Case(bench, organism, pair, text)


def rows_of(case: Case, architectures: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """The rows of a case, those that are not there yet made."""
    found = []
    for architecture in architectures:
        for seed in seeds:
            file = case.folder / f"row-{architecture}-{seed}.json"
            if not file.is_file():
                harvest = harvested(case)
                run = trained(case, architecture, seed)
                row = row_of(case, harvest, run, architecture, seed)
                atomic_write_json(file, asdict(row))
            found.append(Row(**read_json(file, Row, REMEDY)))
    return found


def baselines_of(case: Case) -> list[Baseline]:
    """What the simplest methods say of a case."""
    file = case.folder / "baselines.json"
    if not file.is_file():
        atomic_write_json(file, [asdict(one) for one in baselines(case, harvested(case))])
    return [Baseline(**one) for one in read_json(file, list[Baseline], REMEDY)]


def row_table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table."""
    head = ["organism", "pair", "text", "architecture", "seed", "first", "kind", "score"]
    head += ["precision", "recall", "findings", "random", "FVE"]
    head += ["isolation", "by moves", "before", "s"]
    cells = [
        [
            *(row.organism, row.pair, row.text, row.architecture, str(row.seed)),
            _rank(row),
            row.kind or "-",
            *(_number(x) for x in (row.score, row.precision, row.recall)),
            str(row.findings),
            f"{row.chance:.3f}",
            *(
                _number(x)
                for x in (row.fve, row.isolation, row.moves_isolation, row.prompt_isolation)
            ),
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return table(head, cells)


def summary_table(rows: Sequence[Row], simple: Sequence[Baseline]) -> list[str]:
    """Lines of a Markdown table: every case and architecture, its seeds side by side."""
    head = ["organism", "pair", "text", "architecture", "first", "kind", "precision", "findings"]
    head += ["random", "PCA", "SAE", "AUC of KL"]
    known = {(one.organism, one.pair, one.text, one.method): one for one in simple}
    cells = []
    for key in dict.fromkeys((row.organism, row.pair, row.text, row.architecture) for row in rows):
        mine = [r for r in rows if (r.organism, r.pair, r.text, r.architecture) == key]
        line = [*key, ", ".join(_rank(row) for row in mine)]
        line.append(", ".join(dict.fromkeys(row.kind or "-" for row in mine)))
        line.append(", ".join(_number(row.precision) for row in mine))
        line.append(", ".join(str(row.findings) for row in mine))
        line.append(f"{sum(row.chance for row in mine) / len(mine):.3f}")
        for method in ("PCA of B - A", "SAE of B - A"):
            one = known.get((*key[:3], method))
            line.append("-" if one is None else str(one.rank or "never"))
        one = known.get((*key[:3], "mean KL"))
        cells.append([*line, _number(None if one is None else one.auc)])
    return table(head, cells)


def scaling_table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table: latent scaling's ratios of exclusive latents, by quantiles."""
    head = ["organism", "pair", "text", "architecture", "latents"]
    for kind in ("errors", "reconstructions"):
        head += [f"{kind}: 5%", "50%", "95%", "first"]
    cells = []
    for key in dict.fromkeys((row.organism, row.pair, row.text, row.architecture) for row in rows):
        mine = [r for r in rows if (r.organism, r.pair, r.text, r.architecture) == key]
        of = [
            ([x for row in mine for x in row.error_ratios], [r.error_ratio for r in mine]),
            (
                [x for row in mine for x in row.reconstruction_ratios],
                [r.reconstruction_ratio for r in mine],
            ),
        ]
        line = [*key, str(len(of[0][0]))]
        for values, first in of:
            quantiles = np.quantile(values, (0.05, 0.5, 0.95)) if values else [None] * 3
            line += [_number(x) for x in quantiles]
            line.append(", ".join(_number(x) for x in first))
        cells.append(line)
    return table(head, cells)


def baseline_table(found: Sequence[Baseline]) -> list[str]:
    """Lines of a Markdown table."""
    head = ["organism", "pair", "text", "method", "AUC", "precision@10", "first"]
    cells = [
        [
            *(one.organism, one.pair, one.text, one.method),
            *(_number(x) for x in (one.auc, one.precision_at_10)),
            "-" if one.rank is None else str(one.rank),
            *(_number(x) for x in (one.precision, one.recall, one.isolation, one.prompt_isolation)),
        ]
        for one in found
    ]
    return table([*head, "precision", "recall", "isolation", "before"], cells)


def cause_table(found: Sequence[CauseRow]) -> list[str]:
    """Lines of a Markdown table."""
    head = ["organism", "text", "architecture", "seed", "first", "kind", "of", "latent"]
    head += ["test", "effect", "95%", "beyond random", "strength", "span", "verified", "s"]
    cells = [
        [
            *(one.organism, one.text, one.architecture, str(one.seed)),
            *(str(one.rank), one.kind, ("base", "organism")[one.source], str(one.latent)),
            one.test,
            f"{one.effect:+.3f}",
            f"{one.low:+.3f} to {one.high:+.3f}",
            f"{one.beyond}/{len(one.random)}",
            *(f"{one.strength:g}", one.span),
            "yes" if one.verified else "no",
            f"{one.seconds:.0f}",
        ]
        for one in found
    ]
    return table(head, cells)


def _rank(row: Row) -> str:
    if row.rank is None:
        return "never" if row.concerned else "-"
    return str(row.rank) if row.listed else f"({row.rank})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(argv: Sequence[str]) -> None:
    """Make what is missing of the table, and print it."""
    args = _arguments(argv)
    base, other = ensure_demo_models(args.models)
    scale = QUICK if args.quick else Scale()
    scale = scale if args.prompts is None else replace(scale, prompts=args.prompts)
    bench = Bench(base, other, args.out, scale)
    bench.check()
    rows, simple, causes = [], [], []
    for case in cases(bench, [find(n) for n in args.organisms], args.pairs, args.texts):
        simple += baselines_of(case)
        here = rows_of(case, args.architectures, args.seeds)
        print("\n".join(row_table(here)), flush=True)
        rows += here
        if args.causes:
            causes += causes_of(case, here)
    print("\n".join(["", *row_table(rows), "", *baseline_table(simple)]))
    print("\n".join(["", *scaling_table(rows), "", *summary_table(rows, simple)]))
    print("\n".join(["", *error_rate_table(rows), "", false_share(rows)]))
    print("\nfirst: (n) is beyond chance, but no finding; random: share of latents that would pass")
    if args.causes:
        print("\n".join(["", *cause_table(causes)]))
    if args.json:
        report = {"scale": asdict(scale), "rows": [asdict(row) for row in rows]}
        report |= {"baselines": [asdict(one) for one in simple]}
        report |= {"causes": [asdict(one) for one in causes]} if args.causes else {}
        atomic_write_json(args.json, report)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    every = [organism.name for organism in (*ORGANISMS, *NOTHING, *DEVELOPMENT)]
    reported = every[: -len(DEVELOPMENT)]
    parser.add_argument("--organisms", nargs="+", choices=every, default=reported)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS)
    parser.add_argument("--texts", nargs="+", choices=TEXT_KINDS, default=TEXT_KINDS)
    parser.add_argument(
        "--architectures", nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, help="of each organism (default: 200)")
    parser.add_argument("--models", type=Path, default=Path("runs/demo-data/models"))
    parser.add_argument("--out", type=Path, help="what is done is kept here (runs/organism-table)")
    parser.add_argument(
        "--causes",
        action="store_true",
        help="also test by held-out texts whether the first entry causes the behaviour",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the first organism against the base, one architecture, one seed, 60 prompts",
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.organisms, args.pairs, args.texts = args.organisms[:1], ["base"], ["both"]
        args.architectures, args.seeds = ["rdfc-joint"], args.seeds[:1]
    args.out = args.out or Path(
        "runs/organism-table-quick" if args.quick else "runs/organism-table"
    )
    return args
