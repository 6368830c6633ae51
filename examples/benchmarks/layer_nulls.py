"""Whether the share of false entries that --q promises holds for neighbouring layers of one model.

    python examples/benchmarks/layer_nulls.py --json layer_nulls.json
    python examples/benchmarks/layer_nulls.py --quick     # 20 texts, 20 steps, two seeds

A model is read against itself one layer on, at two depths. The layers differ, and in nothing that
an audit of two models looks for, so every entry of such a list is false. Each list has q values by
the crosscoders of other seeds, of the same depth, of the other or of both, and what is left at a
largest q of .1 is counted among all that could have been an entry.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Before this folder, in which `organisms` has the name of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_models import SMOLLM2, ensure_demo_models
from demo_text import write_demo_texts
from organism_error_rates import LARGEST_Q
from organism_runs import training_words
from organism_settings import ARCHITECTURES, Scale
from step_report import table

from sparsify_crosscoder import Run, list_differences
from sparsify_crosscoder.evaluation.nulls.lists import ListKind, null_list, rates_of
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import pick_device, share_cores
from sparsify_crosscoder.intervals import rate_interval
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.train import train

DEPTHS = {"middle": (15, 16), "early": (7, 8)}
"""The two layers of each depth, of SmolLM2's thirty."""

NULLS = ("same depth", "other depth", "both")


@dataclass(frozen=True)
class Row:
    """What is kept of the list of one crosscoder of two neighbouring layers."""

    depth: str
    seed: int
    nulls: str
    """Which crosscoders of other seeds the q values are by."""

    kept: int
    tested: int
    by_default: int
    """Findings at the least strength, without q values."""


def trained_runs(args: argparse.Namespace, model: Path, texts: Path) -> dict[tuple[str, int], Run]:
    """A run of each depth and seed; those that are there already are opened."""
    scale = Scale(steps=args.steps)
    runs = {}
    for depth, layers in DEPTHS.items():
        for seed in args.seeds:
            name, folder = f"{depth}-{seed}", args.out
            if not (folder / name / "summary.json").is_file():
                words = [str(model), str(texts), "--partners", str(model), "--hookpoints"]
                words += [f"layers.{layer}" for layer in layers]
                words += ["--max_examples", str(args.texts), "--ctx_len", "256"]
                words += ["--cache", str(folder / depth), *ARCHITECTURES["rdfc-joint"]]
                words += [*training_words(scale), "--init_seeds", str(seed), "--resume"]
                words += ["--save_dir", str(folder), "--run_name", name]
                config = parse_run_config([*words, "--log_to_wandb", "False"])
                train(config, pick_device(config.device))
            runs[depth, seed] = Run.open(folder / name)
    return runs


def rows_of(runs: dict[tuple[str, int], Run]) -> Iterator[Row]:
    """What is kept of every run's list by the crosscoders of other seeds."""
    found = {key: list_differences(run) for key, run in runs.items()}
    told = {key: one.to_dict() for key, one in found.items()}
    listed = {}
    for key, run in runs.items():
        coder = found[key].found.crosscoder
        listed[key] = null_list(run, ListKind.of(told[key], coder.num_latents), coder.device)
    for (depth, seed), mine in found.items():
        for nulls in NULLS:
            others = [
                one
                for (at, of), one in listed.items()
                if of != seed and nulls in ("both", "same depth" if at == depth else "other depth")
            ]
            rates = rates_of(told[depth, seed], others)
            kept = sum(rate is not None and rate.q_value <= LARGEST_Q for rate in rates)
            yield Row(depth, seed, nulls, kept, mine.tested, len(mine.findings))


def row_table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table: each depth and kind of nulls, the seeds side by side."""
    head = ["layers", "q by", f"entries at q <= {LARGEST_Q}", "of", "share (95%)", "by default"]
    cells = []
    for depth, (first, second) in DEPTHS.items():
        for nulls in NULLS:
            mine = [row for row in rows if (row.depth, row.nulls) == (depth, nulls)]
            kept, tested = sum(row.kept for row in mine), sum(row.tested for row in mine)
            low, high = rate_interval(kept, tested)
            share = f"{kept / tested:.4f} ({low:.4f} to {high:.4f})"
            entries, default = (
                ", ".join(map(str, counts))
                for counts in ([row.kept for row in mine], [row.by_default for row in mine])
            )
            cells.append([f"{first}, {second}", nulls, entries, f"{tested:,}", share, default])
    return table(head, cells)


def main(argv: Sequence[str]) -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("runs/demo-data/models"))
    parser.add_argument("--out", type=Path, default=Path("runs/layer-nulls"))
    parser.add_argument("--texts", type=int, default=110)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="20 texts, 20 steps, two seeds")
    args = parser.parse_args(argv)
    if args.quick:
        args.texts, args.steps, args.seeds = 20, 20, [0, 1]
        args.out = args.out.with_name(f"{args.out.name}-quick")
    share_cores()
    (model,) = ensure_demo_models(args.models, [SMOLLM2])
    texts = args.out / "texts.jsonl"
    if not texts.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        write_demo_texts(texts)
    rows = list(rows_of(trained_runs(args, model, texts)))
    print("\n".join(row_table(rows)))
    if args.json:
        atomic_write_json(args.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main(sys.argv[1:])
