"""Whether the sparse training step learns what the dense one learns: their loss curves compared.

    python examples/benchmarks/loss_curves.py           1,000 steps, 20 minutes
    python examples/benchmarks/loss_curves.py --quick   60 small steps, under a minute
    python examples/benchmarks/loss_curves.py --store runs/demo-data/store

The dense reference of training_step.py and `Crosscoder`, with its latents screened in float32 and
in bfloat16, are trained side by side on the same batches from the same weights, for three seeds of
the weights. What rounding does to a run must be small beside what another seed does: the script
ends with exit code 1 if the smoothed losses of a sparse run and of the dense run of its seed ever
lie further apart than those of two dense runs do. Activations are those of `--store`, written by
the demo or by `--cache`, or else made up as in training_step.py.
"""

from __future__ import annotations

import importlib
import io
import os
from contextlib import redirect_stdout

if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with redirect_stdout(io.StringIO()):  # it prints whether there is Triton
        importlib.import_module("sparsify")

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from machine import processor
from step_inputs import make_crosscoder, synthetic_pairs
from step_report import table
from step_settings import Setting
from step_variants import VARIANTS, TrainingStep
from torch import Tensor
from tqdm.auto import tqdm

SEEDS = (0, 1, 2)
COMPARED = ("ours fp32", "ours bf16")
SETTING = Setting((256, 256), num_latents=4_096, batch=512, k=32, auxk=True)
QUICK_SETTING = Setting((48, 64), num_latents=512, batch=128, k=8, auxk=True)
STEPS, QUICK_STEPS = 1_000, 60
HELD_OUT_BATCHES, SAMPLE = 8, 8_192
LEARNING_RATE = 1e-3
MAX_GAP = 1.0
"""Largest gap between sparse and dense runs, as a share of that between seeds."""

Batches = Callable[[int], list[Tensor]]


def synthetic_batches(setting: Setting) -> tuple[list[Tensor], Batches]:
    """A sample of pairs, and a function that gives batch t; held-out batches are t < 0."""

    def batch(t: int) -> list[Tensor]:
        return synthetic_pairs(setting.widths, setting.batch, seed=1_000 + t)

    return synthetic_pairs(setting.widths, SAMPLE, seed=0), batch


def stored_batches(path: Path, size: int) -> tuple[list[Tensor], Batches]:
    """The same from an activation store: batches of whole windows that training never sees."""
    from sparsify_crosscoder.store.store import ActivationStore
    from sparsify_crosscoder.store.store_stream import StoreStream

    store = ActivationStore.open(path)
    held_out_pairs = HELD_OUT_BATCHES * size
    train_rows, held_out_rows = store.split(held_out_pairs)
    train = StoreStream(store, seed=0, window_rows=train_rows)
    held_out = StoreStream(store, seed=0, window_rows=held_out_rows)

    def batch(t: int) -> list[Tensor]:
        stream, step = (train, t) if t >= 0 else (held_out, -1 - t)
        return [x.float() for x in next(stream.batches(step, step + 1, size))]

    return [x.float() for x in train.sample(SAMPLE)], batch


def train(
    setting: Setting, sample: Sequence[Tensor], batch: Batches, num_steps: int, device: str
) -> dict[str, list[dict[str, Any]]]:
    """Train all runs side by side, three for each variant, in the order of the seeds.

    Of each run its `losses`, and at the end the held-out `fve` and the share of `dead` latents.
    """
    sample = [x.to(device) for x in sample]
    runs: dict[str, list[TrainingStep]] = {name: [] for name in ("dense", *COMPARED)}
    for name, members in runs.items():
        for seed in SEEDS:
            crosscoder = make_crosscoder(setting, sample, device, seed=seed)
            run = VARIANTS[name](crosscoder, auxk=setting.auxk, lr=LEARNING_RATE)
            # A tenth of the run, so that the auxiliary loss has latents to revive.
            run.dead_after = num_steps * setting.batch // 10
            members.append(run)
    losses: dict[str, list[list[Tensor]]] = {name: [[] for _ in SEEDS] for name in runs}
    warmup = max(num_steps // 20, 1)
    for t in tqdm(range(num_steps), desc="Training", unit="step"):
        pairs = [x.to(device) for x in batch(t)]
        for name, members in runs.items():
            for run, curve in zip(members, losses[name], strict=True):
                for group in run.optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * min((t + 1) / warmup, 1)
                curve.append(run.step(pairs))
    held_out = [[x.to(device) for x in batch(-1 - t)] for t in range(HELD_OUT_BATCHES)]
    return {
        name: [
            {
                "losses": torch.stack(curve).tolist(),
                "fve": fve(run, held_out),
                "dead": (run.since_fired > run.dead_after).float().mean().item(),
            }
            for run, curve in zip(members, losses[name], strict=True)
        ]
        for name, members in runs.items()
    }


@torch.no_grad()
def fve(run: TrainingStep, batches: Sequence[Sequence[Tensor]]) -> float:
    """Fraction of variance explained over batches, BatchTopK choosing in each."""
    losses = [run.losses(run.normalize(batch), None).loss for batch in batches]
    return 1 - torch.stack(losses).mean().item()


def smooth(losses: Sequence[float]) -> Tensor:
    """Means over windows of a fiftieth of the run."""
    width = max(len(losses) // 50, 1)
    return torch.tensor(losses, dtype=torch.float64).unfold(0, width, 1).mean(1)


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Largest gap of each sparse variant to the dense run of its seed, and that between seeds."""
    curves = {name: [smooth(run["losses"]) for run in members] for name, members in runs.items()}
    spread = max((a - b).abs().max().item() for a, b in combinations(curves["dense"], 2))
    fves = {name: torch.tensor([run["fve"] for run in members]) for name, members in runs.items()}
    results = {}
    for name in COMPARED:
        pairs = zip(curves[name], curves["dense"], strict=True)
        gap = max((ours - dense).abs().max().item() for ours, dense in pairs)
        results[name] = {
            "largest_gap": gap,
            "largest_gap_between_seeds": spread,
            "share": gap / spread,
            "largest_fve_gap": (fves[name] - fves["dense"]).abs().max().item(),
            "fve_gap_between_seeds": (fves["dense"].max() - fves["dense"].min()).item(),
        }
    return results


def show(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    rows = [
        [name, *(f"{run['fve']:.4f}" for run in members)]
        for name, members in report["runs"].items()
    ]
    lines = [report["title"], "", *table(["held-out FVE", *(f"seed {s}" for s in SEEDS)], rows), ""]
    head = ["against dense", "largest gap", "between seeds", "share", "FVE gap", "between seeds"]
    rows = [
        [
            name,
            f"{one['largest_gap']:.2e}",
            f"{one['largest_gap_between_seeds']:.2e}",
            f"{one['share']:.2f}",
            f"{one['largest_fve_gap']:.1e}",
            f"{one['fve_gap_between_seeds']:.1e}",
        ]
        for name, one in report["comparison"].items()
    ]
    return "\n".join([*lines, *table(head, rows)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="60 small steps, under a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--store", type=Path, metavar="PATH", help="an activation store")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS:,}, or {QUICK_STEPS}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    num_steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    setting = QUICK_SETTING if args.quick else SETTING
    if args.store:
        sample, batch = stored_batches(args.store, setting.batch)
        widths = tuple(x.shape[1] for x in sample)
        setting = Setting(widths, setting.num_latents, setting.batch, setting.k, auxk=True)
    else:
        sample, batch = synthetic_batches(setting)
    runs = train(setting, sample, batch, num_steps, args.device)
    report = {
        "title": f"{num_steps:,} steps, {'a store' if args.store else 'synthetic pairs'}, "
        f"{'+'.join(map(str, setting.widths))}, M={setting.num_latents:,}, "
        f"batch {setting.batch}, k={setting.k}, AuxK",
        "quick": args.quick,
        "setting": asdict(setting),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sparsify-crosscoder", "torch")},
        },
        "machine": {"processor": processor(), "device": args.device},
        "runs": runs,
        "comparison": compare(runs),
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(show(report))
    if args.quick:
        return 0
    return int(any(one["share"] > MAX_GAP for one in report["comparison"].values()))


if __name__ == "__main__":
    sys.exit(main())
