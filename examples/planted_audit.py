"""An audit that has something to find: a feature planted into one of the demo's models.

    python examples/planted_audit.py --out runs/planted-audit --judge claude-opus-4-5 --max_cost 10

A direction is added to SmolLM2's activations where chance says, on 1% of the tokens, in a copy of
the activation store that `make demo` leaves; the text and the models are as they were. Then the
audit is run on that store, to its report: filter, judge, and both models steered. The planted
feature should come out first by exclusivity, since no linear map has ever seen its direction.
Options behind those named here are the audit's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from nulls_and_plants import plant
from torch import Tensor

from delphi_adapters.commands.audit import main as audit
from sparsify_crosscoder import ActivationStore, Crosscoder
from sparsify_crosscoder.files import atomic_path, atomic_write_json
from sparsify_crosscoder.store.shards import write_shard

SIZE = 0.5  # of the planted direction, in median norms
TRAINING = {
    "arch": "rdfc",
    "num_latents": 4_096,
    "k": 32,
    "pairs_per_step": 512,
    "max_steps": 600,
    "epochs": 6,
    "lr": 2e-3,
    "lr_decay_steps": 200,
    "dead_feature_threshold": 100_000,
    "log_to_wandb": False,
}


def plant_store(store: ActivationStore, folder: Path, number: int = 0) -> Tensor:
    """Write a copy of a store with a direction planted into its first source; returns it, `[D]`."""
    control = plant(store.rows(torch.arange(len(store))), SIZE, number)
    assert control.direction is not None
    with atomic_path(folder) as copy:
        shutil.copytree(store.path, copy)
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
        first = 0
        for part in manifest["parts"]:
            for n, shard in enumerate(part["shards"]):
                last = first + shard["rows"]
                pairs = [x[first:last] for x in control.activations]
                part["shards"][n] = shard | write_shard(copy / shard["file"], pairs, store.dtype)
                first = last
        atomic_write_json(copy / "manifest.json", manifest)
    return control.direction


def likeness_to_planted(run: Path, direction: Tensor) -> Tensor:
    """Cosine of what each latent writes into the first model with what was planted, `[M]`."""
    crosscoder = Crosscoder.load_one(run)
    written = torch.nn.functional.normalize(crosscoder.decoder(0).detach(), dim=1)
    return written @ direction


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data"))
    parser.add_argument("--out", type=Path, default=Path("runs/planted-audit"))
    parser.add_argument("--direction", type=int, default=0, help="which direction to plant")
    args, rest = parser.parse_known_args()
    if not (args.data / "store").exists():
        raise SystemExit(f"'{args.data}' holds no activation store; `make demo` makes one.")
    store = args.out / f"store-{args.direction}"
    if not store.exists():
        direction = plant_store(ActivationStore.open(args.data / "store"), store, args.direction)
        atomic_write_json(args.out / "planted.json", direction.tolist())
    models = [args.data / "models" / name for name in ("smollm2-135m-instruct", "gemma-3-270m")]
    training = [str(x) for name, value in TRAINING.items() for x in (f"--{name}", value)]
    folder = args.out / "audit"
    audit([*map(str, models), "--dataset", str(store), "--out", str(folder), *training, *rest])

    if (folder / "features.parquet").exists():
        direction = torch.tensor(
            json.loads((args.out / "planted.json").read_text(encoding="utf-8"))
        )
        show(folder, likeness_to_planted(folder / "train" / "run", direction))


def show(folder: Path, cosines: Tensor) -> None:
    """Print the latents that were verified, the most exclusive first.

    Without a judge by the likeness of what steering does to both models, the least first.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "features.parquet").to_pylist()
    scored, name, sign = [row for row in rows if row["exclusivity"] is not None], "exclusivity", -1
    if not scored:
        scored, name, sign = [row for row in rows if row["likeness"] is not None], "likeness", 1
    scored.sort(key=lambda row: (sign * row[name], -(row["difference_score"] or 0.0)))
    print(f"\nlatent  {name:>11}  listed  filter  cosine with what was planted")
    for row in scored:
        cosine, kept = float(cosines[row["latent"]]), row["filter_score"] or 0.0
        scores = f"{row['difference_score'] or 0.0:>6.3f}  {kept:>6.3f}"
        print(f"{row['latent']:>6}  {row[name]:>11.2f}  {scores}  {cosine:>6.3f}")


if __name__ == "__main__":
    main()
