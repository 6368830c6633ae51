"""Does it change what is found that `plant` plants many differences at once, or refits for them?

    python examples/benchmarks/plant_shortcuts.py RUN --out runs/plant_shortcuts

The same differences, in the same places, are planted

alone, from zero     one in each copy of the pairs, trained as a user's run is
together, from zero  many in one copy, as `plant` does it
refitted in .33      the same with `--refit`, here in a third of the run's steps

and looked up in the list of each. Both kinds of direction are asked for, one after the other. A
run that was stopped goes on where it was. With --quick two plants, one of them alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sparsify_crosscoder import Run
from sparsify_crosscoder.evaluation.plant_config import KINDS, Directions
from sparsify_crosscoder.evaluation.planted_recall import PlantedRecall, PlantFound, Recall
from sparsify_crosscoder.evaluation.planted_training import Refit
from sparsify_crosscoder.evaluation.power import PlantConfig, PlantPlan, carry_out
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.training.allocator import keep_freed_memory

ALONE, TOGETHER = "alone, from zero", "together, from zero"


@dataclass(frozen=True)
class Compared:
    """What each way found of the same plants."""

    directions: Directions
    found: dict[str, PlantedRecall]

    def rows(self) -> list[dict[str, PlantFound]]:
        """Of each plant what every way that had it says."""
        by_plant: dict[tuple, dict[str, PlantFound]] = {}
        for way, found in self.found.items():
            for one in found.plants:
                key = (*one.cell, one.replicate, one.source)
                by_plant.setdefault(key, {})[way] = one
        return [by_plant[key] for key in sorted(by_plant)]

    def lines(self) -> list[str]:
        """A Markdown table, a line per plant, and the sums over plants that all ways had."""
        ways = list(self.found)
        table = [["planted", "size", "share", "source", *ways], ["---"] * (4 + len(ways))]
        rows = self.rows()
        for row in rows:
            one = next(iter(row.values()))
            cells = [said(row.get(way)) for way in ways]
            share = f"{one.frequency:.2%}"
            table.append([one.kind, f"{one.size:g}", share, str(one.source), *cells])
        both = [row for row in rows if len(row) == len(ways)]
        for name, some in (("that all ways had", both), ("all", rows)):
            sums = [
                str(Recall(sum(row[way].finding for row in some if way in row), known))
                if (known := sum(way in row for row in some))
                else "-"
                for way in ways
            ]
            table.append([name, "", "", "", *sums])
        without = [str(found.found_without) for found in self.found.values()]
        table.append(["nothing planted", "", "", "", *without])
        nothing = [found.nothing for found in self.found.values()]
        table.append(["all findings then", "", "", "", *(str(n.findings) for n in nothing)])
        seconds = [sum(r.seconds for r in found.rounds) for found in self.found.values()]
        counts = [len(found.plants) for found in self.found.values()]
        each = [f"{s / max(n, 1):.1f}" for s, n in zip(seconds, counts, strict=True)]
        table.append(["seconds a plant", "", "", "", *each])
        return [f"| {' | '.join(row)} |" for row in table]


def said(one: PlantFound | None) -> str:
    """Rank and kind of a plant's entry, the rank in brackets where it is no finding."""
    if one is None:
        return "-"
    if one.rank is None:
        return f"lost ({one.cosine:.2f})"
    rank = str(one.rank) if one.finding else f"({one.rank})"
    return f"{rank} {one.entry}, {one.cosine:.2f}"


def compare(
    run: Run, config: PlantConfig, refits: Sequence[float], alone: int, out: Path
) -> Compared:
    """Plant in all ways, at most so many plants alone."""
    plan = PlantPlan.of(run, config, torch.device("cpu"))
    zero = replace(plan, refit=Refit.of(run))
    ways = {
        f"refitted in {share:.2g}": replace(plan, refit=Refit.of(run, share)) for share in refits
    }
    ways[TOGETHER] = zero
    ways[ALONE] = replace(zero, rounds=[[plant] for plant in plan.plants][:alone])
    found = {}
    for way, planned in ways.items():
        print(f"{config.directions}, {way}: {planned.text()}", flush=True)
        name = way.replace(", ", "-").replace(" ", "-")
        found[way] = carry_out(planned, out / f"{config.directions}-{name}")
        print("\n".join(Compared(config.directions, found).lines()), flush=True)
    return Compared(config.directions, {way: found[way] for way in reversed(ways)})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/plant_shortcuts"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.5, 0.125])
    parser.add_argument("--frequencies", nargs="+", type=float, default=[0.01, 0.001])
    parser.add_argument("--replicates", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=PlantConfig.pairs, help="of each list")
    parser.add_argument("--alone", type=int, default=10, help="plants that are also alone")
    parser.add_argument("--directions", nargs="+", default=["activations", "isotropic"])
    parser.add_argument("--refits", nargs="+", type=float, default=[1 / 3], help="shares of steps")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.frequencies, args.replicates, args.alone = [0.5], [0.01], 2, 1
        args.kinds, args.directions, args.pairs = ["random"], args.directions[:1], 8_192
    keep_freed_memory()
    run = Run.open(args.run)
    result = {}
    for directions in args.directions:
        config = PlantConfig(
            kinds=tuple(kind for kind in KINDS if kind in args.kinds),
            sizes=tuple(args.sizes),
            frequencies=tuple(args.frequencies),
            replicates=args.replicates,
            directions=directions,
            pairs=args.pairs,
        )
        compared = compare(run, config, args.refits, args.alone, args.out)
        result[directions] = {way: found.to_dict() for way, found in compared.found.items()}
    if args.json is not None:
        atomic_write_json(args.json, result)


if __name__ == "__main__":
    main()
