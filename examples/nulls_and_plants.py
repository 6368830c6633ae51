"""Does the tool find a difference that is there, and none where there is none?

    python examples/nulls_and_plants.py --store runs/demo-data/store --out runs/controls

On real activations, from an activation store such as the one that `make demo` leaves:

pair    the two models as they are, from three seeds
nulls   a model against itself, against itself in 8 bits, rotated by a random orthogonal matrix, and
        rotated with 5% noise; nothing that is found is a difference
plants  a fixed direction is added to the first model on a random 1% of the pairs, at a multiple of
        the median norm of its activations; five directions for each size

Each is trained, filtered and clustered as a user would. A run that was stopped goes on where it
was; the tables are printed at the end, and everything is in `controls.jsonl`. Half a minute to a
minute for each of the 17 runs of a variant, on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from sparsify_crosscoder import ActivationStore, Crosscoder
from sparsify_crosscoder.config import CrosscoderTrainConfig
from sparsify_crosscoder.evaluation.clusters import Cluster, clusters
from sparsify_crosscoder.evaluation.false_exclusives import (
    FilterConfig,
    FilteredLatents,
    judge_exclusives,
)
from sparsify_crosscoder.evaluation.latent_scaling import Kind, calibrated
from sparsify_crosscoder.evaluation.matching import FoundClusters
from sparsify_crosscoder.evaluation.stability import stability
from sparsify_crosscoder.registry import get_architecture
from sparsify_crosscoder.store.tensor_stream import TensorStream
from sparsify_crosscoder.training.allocator import keep_freed_memory
from sparsify_crosscoder.training.data import PairedData
from sparsify_crosscoder.training.trainer import make_trainer

NULLS = ("itself", "quantised", "rotated", "noisy")
CALIBRATING = ("null-quantised", "null-rotated", "null-noisy")  # nulls that can fail
NOISE = 0.05
PLANTED_SHARE = 0.01
PLANT_SIZES = (0.5, 0.125)
PLANT_SEED = 1_000
HELD_OUT = 32_768
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "crosscoder": ("crosscoder", {}),
    "dfc": ("dfc", {}),
    "dfc-joint": ("dfc", {"selection": "joint"}),
    "rdfc": ("rdfc", {}),
    "rdfc-difference": ("rdfc", {"selection": "grouped", "difference_weight": 1.0}),
}


@dataclass
class Control:
    """Pairs to train on; of all but the models as they are, the only difference is known."""

    name: str
    activations: list[Tensor]
    direction: Tensor | None = None
    """What was planted into the first source, a unit vector `[D]`, if anything was."""

    planted: Tensor | None = None
    """On which pairs, a boolean `[N]`."""

    seed: int = 0
    """Of the crosscoder's first weights and the order of the pairs."""


def null(kind: str, x: Tensor, seed: int = 0) -> Control:
    """One model's activations `[N, D]`, and the same again in 8 bits or in another basis."""
    generator = torch.Generator().manual_seed(seed)
    other = x
    if kind == "quantised":
        step = x.float().abs().amax(1, keepdim=True) / 127
        other = (x.float() / step).round() * step
    elif kind != "itself":
        width = x.shape[1]
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        other = x.float() @ rotation
    if kind == "noisy":
        spread = (other - other.mean(0)).std()
        other = other + NOISE * spread * torch.randn(other.shape, generator=generator)
    return Control(f"null-{kind}", [x, other.to(x.dtype)])


def plant(pairs: Sequence[Tensor], size: float, seed: int) -> Control:
    """A direction added to the first source where chance says, `size` times its median norm."""
    # Of its own, or a latent's first weights could be what is planted.
    generator = torch.Generator().manual_seed(PLANT_SEED + seed)
    x = pairs[0].float()
    direction = torch.nn.functional.normalize(torch.randn(x.shape[1], generator=generator), dim=0)
    planted = torch.rand(len(x), generator=generator) < PLANTED_SHARE
    strength = size * (x - x.mean(0)).norm(dim=1).median()
    x = x + strength * planted[:, None] * direction
    return Control(f"plant-{size:g}-{seed}", [x.to(pairs[0].dtype), pairs[1]], direction, planted)


def train(
    control: Control, variant: str, args: argparse.Namespace, folder: Path
) -> tuple[Crosscoder, dict[str, Any]]:
    """Train on all pairs but the last, on which the summary's FVE is measured."""
    arch, options = VARIANTS[variant]
    architecture = get_architecture(arch)
    cfg = CrosscoderTrainConfig(
        sae=architecture.config_class(num_latents=args.num_latents, k=args.k, **options),
        lr=2e-3,
        lr_decay_steps=args.max_steps // 3,
        pairs_per_step=512,
        max_steps=args.max_steps,
        epochs=100,
        dead_feature_threshold=100_000,
        held_out_pairs=0,
        init_seeds=[control.seed],
        save_dir=str(folder.parent),
        run_name=folder.name,
        log_to_wandb=False,
    )
    training = [x[:-HELD_OUT] for x in control.activations]
    sources = [
        {"name": name, "hookpoint": "activations", "width": x.shape[1]}
        for name, x in zip("AB", training, strict=True)
    ]
    held_out = TensorStream([x[-HELD_OUT:] for x in control.activations], seed=1)
    data = PairedData(TensorStream(training, seed=control.seed), held_out, sources)
    trainer = make_trainer(architecture, cfg, data)
    shutil.rmtree(folder, ignore_errors=True)
    with redirect_stdout(io.StringIO()):
        summary = trainer.fit(show_progress=False)
    return next(iter(trainer.saes.values())).eval(), summary


def run_control(
    control: Control, variant: str, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train, filter, cluster, and say what was found of what is there."""
    crosscoder, summary = train(control, variant, args, folder)
    filtered, found = judge(crosscoder, control, args)
    alive = [int((filtered.firings > 0)[filtered.sources == s].sum()) for s in (0, 1)]
    result: dict[str, Any] = {
        "control": control.name,
        "variant": variant,
        "fve": summary["fve"],
        "fve_per_source": summary["fve_per_source"],
        "called_exclusive": [int((filtered.sources == s).sum()) for s in (0, 1)],
        "alive": alive,
        "verdicts": [filtered.counts(s) for s in (0, 1)],
        "clusters": [sum(c.source == s for c in found) for s in (0, 1)],
        "scaling": scaling(filtered),
    }
    if control.direction is not None and control.planted is not None:
        result["plant"] = find_plant(crosscoder, found, control.direction, control)
        result["plant"]["scaling"] = scaling(filtered, result["plant"].pop("latents", []))
    return result


def judge(
    crosscoder: Crosscoder, control: Control, args: argparse.Namespace
) -> tuple[FilteredLatents, list[Cluster]]:
    """What the filter says of the exclusive latents, and the clusters of those it keeps."""
    stream = TensorStream(control.activations, seed=1)
    filtered = judge_exclusives(crosscoder, stream, FilterConfig(pairs=args.pairs))
    return filtered, clusters(crosscoder, filtered)


def scaling(filtered: FilteredLatents, some: Sequence[int] | None = None) -> dict[str, list[float]]:
    """Ratios of latent scaling of the latents that can be judged, all or some of them."""
    chosen = filtered.scorable
    if some is not None:
        chosen &= torch.isin(filtered.latents, torch.tensor(some, dtype=torch.long))
    kinds: tuple[Kind, Kind] = ("error", "reconstruction")
    return {
        kind: filtered.scaling.ratios(filtered.sources, kind).value[chosen].tolist()
        for kind in kinds
    }


def recurring(
    controls: Sequence[Control], variant: str, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """How many differences all the seeds of a variant found, of each source."""
    runs = []
    for control in controls:
        crosscoder = Crosscoder.load_one(folder / f"{control.name}-{variant}")
        runs.append(FoundClusters(control.name, crosscoder, judge(crosscoder, control, args)[1]))
    stream = TensorStream(controls[0].activations, seed=1)
    outcome = stability(runs, stream, num_pairs=args.pairs)
    in_all = outcome.found_by(len(runs))
    return {
        "control": "recurring",
        "variant": variant,
        "recurring": [sum(one.source == s for one in in_all) for s in (0, 1)],
        "null_correlation": outcome.null_correlation,
    }


@torch.no_grad()
def find_plant(
    crosscoder: Crosscoder, found: Sequence[Cluster], direction: Tensor, control: Control
) -> dict[str, Any]:
    """How well the best cluster of the first source is what was planted.

    `echoes` are clusters of the other
    source of whose pairs a tenth or more are planted, ten times what chance gives.
    """
    assert control.planted is not None
    mine = [c for c in found if c.source == 0]
    if not mine:
        return {"found": False}
    cosines = torch.stack([c.direction @ direction for c in mine])
    best = mine[int(cosines.argmax())]
    echoes = [c for c in found if c.source != 0]
    present = presence(crosscoder, [best, *echoes], control.activations)
    hits = (present & control.planted[:, None]).sum(0)
    precisions = hits / present.sum(0).clamp_min(1)
    return {
        "found": bool(cosines.max() >= 0.8),
        "cosine": cosines.max().item(),
        "rank": found.index(best) + 1,
        "latents": best.latents,
        "copies": len(best.latents),
        "clusters_like_it": int((cosines >= 0.8).sum()),
        "precision": precisions[0].item(),
        "recall": hits[0].item() / max(int(control.planted.sum()), 1),
        "echoes": int((precisions[1:] >= 10 * PLANTED_SHARE).sum()),
    }


def presence(
    crosscoder: Crosscoder, listed: Sequence[Cluster], activations: Sequence[Tensor]
) -> Tensor:
    """On which pairs each of C clusters is present, a boolean `[N, C]`."""
    weights = torch.zeros(crosscoder.num_latents, len(listed))
    for c, cluster in enumerate(listed):
        weights[cluster.latents, c] = torch.tensor(cluster.weights)
    levels = torch.tensor([cluster.level for cluster in listed])
    present = []
    for parts in zip(*(x.split(8192) for x in activations), strict=True):
        code = crosscoder.encode_sparse(parts)
        strengths = F.embedding_bag(
            code.indices, weights, code.offsets, mode="sum", per_sample_weights=code.acts
        )
        present.append(strengths >= levels)
    return torch.cat(present)


def pair_table(results: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds of the models as they are, A and B, with the nulls beside them."""
    head = ["variant", "FVE A, B", "called exclusive", "alive", "kept", "not scorable", "clusters"]
    head += ["clusters in all seeds", "nulls: kept of alive"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for variant in dict.fromkeys(r["variant"] for r in results):
        mine = [r for r in results if r["variant"] == variant]
        pairs = [r for r in mine if r["control"].startswith("pair-")]
        nulls = [r for r in mine if r["control"].startswith("null-")]
        if not pairs:
            continue

        def mean(read: Callable[[dict[str, Any], int], float], form: str, of: Any = pairs) -> str:
            means = [statistics.fmean(read(r, s) for r in of) for s in (0, 1)]
            return ", ".join(format(m, form) for m in means)

        in_all = next((r["recurring"] for r in mine if r["control"] == "recurring"), None)
        kept = sum(counts["kept"] for r in nulls for counts in r["verdicts"])
        cells = [
            variant,
            mean(lambda r, s: r["fve_per_source"][s], ".3f"),
            mean(lambda r, s: r["called_exclusive"][s], ".0f"),
            mean(lambda r, s: r["alive"][s], ".0f"),
            mean(lambda r, s: r["verdicts"][s]["kept"], ".0f"),
            mean(
                lambda r, s: sum(
                    r["verdicts"][s][v] for v in ("too_rare", "unclear", "not_linear")
                ),
                ".0f",
            ),
            mean(lambda r, s: r["clusters"][s], ".0f"),
            ", ".join(map(str, in_all)) if in_all is not None else "",
            f"{kept} of {sum(sum(r['alive']) for r in nulls)}" if nulls else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cut_offs(results: Sequence[dict[str, Any]]) -> str:
    """Ratios that one in twenty latents of the nulls is below, and how many planted ones are."""
    lines = ["| variant | latents of nulls | error below | reconstruction below | planted below |"]
    lines.append("|---|---|---|---|---|")
    for variant in dict.fromkeys(r["variant"] for r in results):
        mine = [r for r in results if r["variant"] == variant and "scaling" in r]
        nulls = [r["scaling"] for r in mine if r["control"] in CALIBRATING]
        error, made = (
            torch.tensor([v for one in nulls for v in one[kind]])
            for kind in ("error", "reconstruction")
        )
        if len(error) < 20:
            continue
        least = calibrated(error, made)
        plants = [r["plant"]["scaling"] for r in mine if r.get("plant", {}).get("found")]
        below = sum(
            e < least.error and m < least.reconstruction
            for one in plants
            for e, m in zip(one["error"], one["reconstruction"], strict=True)
        )
        of = sum(len(one["error"]) for one in plants)
        cells = [variant, f"{len(error):,}", f"{least.error:.3f}", f"{least.reconstruction:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{below} of {of}"]) + " |")
    return "\n".join(lines)


def control_table(results: Sequence[dict[str, Any]]) -> str:
    """One line per null and plant."""
    lines = [
        "| control | variant | alive A, B | kept A, B | clusters A, B | cosine | rank | copies | "
        "precision | recall | echoes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if not r["control"].startswith(("null-", "plant-")):
            continue
        kept = [counts["kept"] for counts in r["verdicts"]]
        cells = [r["control"], r["variant"], r["alive"], kept, r["clusters"]]
        plant_cells = ["", "", "", "", "", ""]
        if (found := r.get("plant")) is not None:
            plant_cells = ["missed", "", "", "", "", ""]
            if "cosine" in found:
                plant_cells = [
                    f"{found['cosine']:.3f}",
                    f"{found['rank']}",
                    f"{found['copies']}",
                    f"{found['precision']:.3f}",
                    f"{found['recall']:.3f}",
                    f"{found['echoes']}",
                ]
        texts = [", ".join(map(str, c)) if isinstance(c, list) else str(c) for c in cells]
        lines.append("| " + " | ".join(texts + plant_cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("runs/demo-data/store"))
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--num_latents", type=int, default=4_096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--max_steps", type=int, default=600)
    parser.add_argument("--directions", type=int, default=5, help="planted per size (default: 5)")
    parser.add_argument("--first_direction", type=int, default=0, help="which one they begin at")
    parser.add_argument("--seeds", type=int, default=3, help="of the pair itself (default: 3)")
    parser.add_argument("--pairs", type=int, default=131_072, help="pairs that the filter looks at")
    args = parser.parse_args()
    keep_freed_memory()
    if not args.store.exists():
        raise SystemExit(f"'{args.store}' is no activation store; `make demo` makes one.")
    store = ActivationStore.open(args.store)
    everything = store.rows(torch.arange(len(store)))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "controls.jsonl"
    done = [json.loads(line) for line in file.open(encoding="utf-8")] if file.exists() else []
    known = {(r["control"], r["variant"]) for r in done}
    pairs = [Control(f"pair-{seed}", list(everything), seed=seed) for seed in range(args.seeds)]
    makers = {pair.name: lambda pair=pair: pair for pair in pairs}
    makers |= {f"null-{kind}": lambda kind=kind: null(kind, everything[0]) for kind in NULLS}
    for size in PLANT_SIZES:
        for seed in range(args.first_direction, args.first_direction + args.directions):
            makers[f"plant-{size:g}-{seed}"] = lambda size=size, seed=seed: plant(
                everything, size, seed
            )
    todo = [(n, v) for n in makers for v in args.variants if (n, v) not in known]
    with file.open("a", encoding="utf-8") as out:
        for name, variant in tqdm(todo, desc="Controls", unit="run"):
            result = run_control(
                makers[name](), variant, args, args.out / "runs" / f"{name}-{variant}"
            )
            done.append(result)
            out.write(json.dumps(result) + "\n")
            out.flush()
        for variant in args.variants if len(pairs) > 1 else ():
            if ("recurring", variant) not in known:
                done.append(recurring(pairs, variant, args, args.out / "runs"))
                out.write(json.dumps(done[-1]) + "\n")
    print(pair_table(done), end="\n\n")
    print(control_table(done), end="\n\n")
    print(cut_offs(done))


if __name__ == "__main__":
    main()
