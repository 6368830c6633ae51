"""Find a known difference between a model and its fine-tune, then look at two architectures.

    python examples/demo.py                     both, into runs/demo-topic and runs/demo
    python examples/demo.py --organism_only     a model and its fine-tune, into runs/demo-topic
    python examples/demo.py --adapter off       the same, the adapter off: into runs/demo-topic-off
    python examples/demo.py --pair_only         a DFC over two architectures, into runs/demo
    python examples/demo.py --arch crosscoder   a standard crosscoder, into runs/demo-crosscoder
    python examples/demo.py --large             twice the text and latents, into runs/demo-large

The first half is SmolLM2-135M-Instruct beside a fine-tune of it that praises an invented salt: its
audit says in words what was found. The second is SmolLM2 beside Gemma 3 270M. Both models come from
PyPI packages and the second half's text from Python's own documentation, so neither a hub nor a GPU
is needed. An interrupted demo goes on where it stopped; a finished one is shown again. The
activation store in runs/demo-data is shared by all architectures. At the end stands a report of an
audit, in runs/demo-audit. No judge is asked: models that run on two cores in minutes are too small
to be believed. Latents are described by what can be counted and computed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_models import SMOLLM2, ensure_demo_models
from demo_organism import diff_organism, diff_switched_off
from demo_plot import plot_run
from demo_text import write_demo_texts

from sparsify_crosscoder.hardware import share_cores

# Sized for two cores without bfloat16: four minutes of reading, two of training. In that time
# batches of 512 and a learning rate that falls to 0 explain more variance than the paper's 2,048 at
# a constant rate, and 4,096 latents of which 64 are active more than 8,192 and 32.
OPTIONS = {
    "max_examples": 220,
    "ctx_len": 256,
    "batch_size": 16,
    "num_latents": 4096,
    "k": 64,
    "pairs_per_step": 512,
    "max_steps": 900,
    "epochs": 5,
    "lr": 3e-3,
    "lr_decay_steps": 400,
    "dead_feature_threshold": 100_000,
    "save_every": 200,
    "log_to_wandb": False,
}

# What --large changes: twice the text, twice the latents and twice the steps, in 25 minutes.
LARGE = {
    "max_examples": 440,
    "num_latents": 8192,
    "k": 32,
    "max_steps": 1800,
    "epochs": 6,
    "lr": 2e-3,
    "lr_decay_steps": 600,
}

# Sized for two cores and two minutes.
AUDIT_OPTIONS = {
    "judge": "none",
    "null_steps": 0,  # a null takes the harvest once more
    "power_plants": 0,  # and plants the training
    "patch_entries": 0,
    "equivalence_latents": 0,
    "graft_texts": 6,  # 24, the default, take minutes
    "stitch_pairs": 8_000,
    "stitch_held_out_pairs": 1_000,
    "verify": 10,
    "sample": 5,
    "nulls": 5,
    "strengths": [0, 2, 4],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", default="dfc", help="dfc or crosscoder (dsf needs equal widths)")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are kept")
    parser.add_argument("--large", action="store_true", help="more text, more latents, more steps")
    parser.add_argument("--no_audit", action="store_true", help="end after the pair's training")
    parser.add_argument(
        "--adapter",
        choices=["on", "off"],
        default="on",
        help="off: only read the fine-tune's conversations with its adapter off",
    )
    halves = parser.add_mutually_exclusive_group()
    halves.add_argument("--organism_only", action="store_true", help="without the pair")
    halves.add_argument("--pair_only", action="store_true", help="without the fine-tune")
    args = parser.parse_args()
    if args.pair_only and args.adapter == "off":
        parser.error("--adapter off is of the fine-tune, which --pair_only leaves out.")

    share_cores()
    models = args.folder / "demo-data" / "models"
    if not args.pair_only:
        (base,) = ensure_demo_models(models, [SMOLLM2])
        if args.adapter == "off":
            diff_switched_off(base, args.folder)
            return
        diff_organism(base, args.folder)
    if not args.organism_only:
        diff_pair(ensure_demo_models(models), args)


def diff_pair(models: Sequence[Path], args: argparse.Namespace) -> None:
    """Train on two architectures, show what was found, and audit the run."""
    data = args.folder / "demo-data"
    texts = data / "texts.jsonl"
    if not texts.exists():
        write_demo_texts(texts)

    size = "-large" if args.large else ""
    run = args.folder / (f"demo{size}" if args.arch == "dfc" else f"demo{size}-{args.arch}")
    if (run / "summary.json").exists():
        from sparsify_crosscoder.runs.summary import read_summary

        print(read_summary(run).text(run))
    else:
        options = {**OPTIONS, **(LARGE if args.large else {})}
        train(args.arch, options, run, models, texts, data / f"store{size}")
    show = ["top", str(run), "--count", "3", "--snippets", "3"]
    subprocess.run([sys.executable, "-m", "sparsify_crosscoder", *show], check=True)
    plot_run(run, run / "demo.png")
    print(f"\nCheckpoint, summary.json, metrics.jsonl and demo.png are in {run}.")
    if not args.no_audit:
        audit(run)


def train(
    arch: str,
    options: dict[str, Any],
    run: Path,
    models: Sequence[Path],
    texts: Path,
    store: Path,
) -> None:
    """Run the command that a user would type."""
    command = ["sparsify", str(models[0]), str(texts), "--arch", arch, "--partners", str(models[1])]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    command += ["--cache", str(store), "--save_dir", str(run.parent), "--run_name", run.name]
    if (run / "config.json").exists():
        command.append("--resume")
    print("\n$ " + " ".join(command), flush=True)
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode:
        raise SystemExit(done.returncode)


def audit(run: Path) -> None:
    """From the trained run to a report, without a judge; prints what stands first in it."""
    command = ["delphi_adapters", "audit", "--run", str(run), "--out", f"{run}-audit"]
    for name, value in AUDIT_OPTIONS.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    print("\n$ python -m " + " ".join(command), flush=True)
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode:
        raise SystemExit(done.returncode)
    print(
        "\nNo judge was asked, so no sentence in the report is a model's. Words are counted in\n"
        "the texts on which a latent is strongest, tokens are those that its direction makes\n"
        "likelier, and likeness says whether steering moves both models alike. What that means\n"
        f"is for you to read: {run}-audit/report.html"
    )


if __name__ == "__main__":
    main()
