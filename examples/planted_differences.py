"""Which kinds of difference does a crosscoder carry, and how small and rare may they be?

    python examples/planted_differences.py --store runs/demo-data/store --out runs/differences

On real activations of one model, from an activation store such as the one that `make demo` leaves.
The second "model" is the same activations with a known change and a little independent noise, as
near to the first as a fine-tune may be:

isolated  a direction on random pairs
token     a direction wherever one token occurs, which both models see
rank-one  a direction as strong as the first model's activation along another one
shift     a direction on all pairs
nothing   noise alone

Sizes are multiples of the median norm. For each change, architecture and seed the table names what
carries it best: among exclusive latents by the cosine of the decoder with the planted direction and
the correlation of the activation with the planted strength, among shared ones by the same with the
difference of both decoders, and by the cosine of the difference of the means. A run that was
stopped goes on where it was; everything is in `differences.jsonl`. Each run takes about a minute on
a core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from nulls_and_plants import HELD_OUT, VARIANTS, Control, train
from torch import Tensor
from tqdm.auto import tqdm

from sparsify_crosscoder import ActivationStore, Crosscoder
from sparsify_crosscoder.training.allocator import keep_freed_memory

NOISE = 0.01  # of the median norm, over all dimensions
PLANT_SEED = 2_000
TOP_DIMENSIONS = 5  # which hold most of the variance; no change is read from them
CARRIED = 0.8


class Change(NamedTuple):
    """What the second model has and the first has not."""

    kind: str
    size: float = 0.0
    """Of the change where it is, in median norms; the standard deviation of a rank-one change."""

    share: float = 1.0
    """Of the pairs; for a token, the one that is nearest to this share is taken."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size:g}-{self.share:g}"


CHANGES = (
    *(Change("isolated", size, share) for size in (0.5, 0.125) for share in (0.01, 0.001, 0.0003)),
    *(Change("token", size, share) for size in (0.5, 0.125) for share in (0.01, 0.001)),
    Change("rank-one", 0.125),
    Change("shift", 0.5),
    Change("nothing"),
)


@dataclass
class Planted:
    """Pairs, the direction `[D]` that was added to the second source, and how strongly, `[N]`."""

    control: Control
    direction: Tensor
    strength: Tensor


@dataclass
class Carrier:
    """What carries a change best among latents of one kind."""

    latent: int
    cosine: float
    correlation: float
    fires: float
    """Share of the pairs."""

    alive: int
    """Latents of this kind that fire at all."""


def plant(change: Change, x: Tensor, tokens: Tensor, seed: int, noise: float = NOISE) -> Planted:
    """The activations x `[N, D]` of one model, read at `tokens` [N], and the same with a change.

    `noise` is in median norms.
    """
    generator = torch.Generator().manual_seed(PLANT_SEED + seed)
    x = x.float()
    centred = x - x.mean(0)
    norm = centred.norm(dim=1).median()
    direction = F.normalize(torch.randn(x.shape[1], generator=generator), dim=0)
    if change.kind == "isolated":
        where = (torch.rand(len(x), generator=generator) < change.share).float()
    elif change.kind == "token":
        shares = torch.bincount(tokens) / len(tokens)
        where = (tokens == (shares - change.share).abs().argmin()).float()
    elif change.kind == "rank-one":
        read = torch.randn(x.shape[1], generator=generator)
        read[centred.var(0).topk(TOP_DIMENSIONS).indices] = 0
        where = centred @ read / (centred @ read).std()
    else:
        where = torch.full((len(x),), float(change.kind == "shift"))
    strength = change.size * norm * where
    spread = noise * norm / x.shape[1] ** 0.5
    noisy = x + spread * torch.randn(x.shape, generator=generator)
    other = noisy + strength[:, None] * direction
    control = Control(f"{change.name}-{seed}", [x, other], seed=seed)
    return Planted(control, direction, strength)


def carriers(crosscoder: Crosscoder, planted: Planted) -> dict[str, Carrier]:
    """What carries a change on the held-out pairs, by kind of latent."""
    code = crosscoder.encode_sparse([x[-HELD_OUT:] for x in planted.control.activations])
    acts = code.to_dense()
    fires = (acts > 0).float().mean(0)
    strength = planted.strength[-HELD_OUT:, None]
    strength = strength - strength.mean()
    correlations = F.cosine_similarity(acts - acts.mean(0), strength, 0)
    written = [crosscoder.decoder(s) / crosscoder.factors[s] for s in (0, 1)]
    relative = crosscoder.relative_decoder_norm()
    kinds = {
        "exclusive": (relative < 0.1, written[1]),
        "exclusive to the first": (relative > 0.9, -written[0]),
        "shared": ((relative >= 0.1) & (relative <= 0.9), written[1] - written[0]),
    }
    found = {}
    for kind, (mask, vectors) in kinds.items():
        latents = mask.nonzero()[:, 0]
        if not len(latents):
            continue
        cosines = F.normalize(vectors[latents], dim=1) @ planted.direction
        best = int((cosines * correlations[latents]).argmax())
        latent = int(latents[best])
        found[kind] = Carrier(
            latent,
            float(cosines[best]),
            float(correlations[latent]),
            float(fires[latent]),
            int((fires[latents] > 0).sum()),
        )
    return found


def investigate(
    change: Change, x: Tensor, tokens: Tensor, variant: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one architecture on a change and say what carries it."""
    planted = plant(change, x, tokens, seed, args.noise)
    name = f"{planted.control.name}-{variant}"
    crosscoder, summary = train(planted.control, variant, args, args.out / "runs" / name)
    first, second = (crosscoder.mean[columns] for columns in crosscoder.columns)
    return {
        "change": change._asdict(),
        "variant": variant,
        "seed": seed,
        "fve": summary["fve"],
        "predicted_by": summary.get("predicted_by"),
        "l0_per_block": summary["l0_per_block"],
        "mean_cosine": float(F.normalize(second - first, dim=0) @ planted.direction),
        "carriers": {kind: asdict(one) for kind, one in carriers(crosscoder, planted).items()},
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line per change and architecture, means over the seeds."""
    lines = [
        "| change | size | share | architecture | carried, of seeds | exclusive: cosine, "
        "correlation | shared: cosine, correlation | means: cosine | exclusive alive | FVE |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((Change(**r["change"]), r["variant"]) for r in results)
    for change, variant in keys:
        mine = [r for r in results if Change(**r["change"]) == change and r["variant"] == variant]

        def mean(values: Sequence[float]) -> str:
            return f"{sum(values) / len(values):.2f}" if values else "-"

        cells = [change.kind, f"{change.size:g}", f"{change.share:g}", variant]
        cells.append(f"{sum(map(_carried, mine))} of {len(mine)}")
        for kind in ("exclusive", "shared"):
            found = [r["carriers"][kind] for r in mine if kind in r["carriers"]]
            both = [mean([one[of] for one in found]) for of in ("cosine", "correlation")]
            cells.append(", ".join(both))
        cells.append(mean([r["mean_cosine"] for r in mine]))
        exclusive = [r["carriers"].get("exclusive") for r in mine]
        cells.append(mean([one["alive"] for one in exclusive if one is not None]))
        cells.append(f"{sum(r['fve'] for r in mine) / len(mine):.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _carried(result: dict[str, Any]) -> bool:
    """Whether something has both the direction and the strength of a change."""
    if result["change"]["kind"] == "shift":
        return result["mean_cosine"] >= CARRIED
    found = result["carriers"].values()
    return any(min(one["cosine"], one["correlation"]) >= CARRIED for one in found)


def pairs_of(store: ActivationStore, count: int) -> tuple[Tensor, Tensor]:
    """So many random pairs of a store: the first source's activations, and its tokens there."""
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(PLANT_SEED))
    index = order[:count]
    windows, places = store.provenance(index)
    rows = [(w["input_ids_0"], w["pairs_0"]) for w in store.windows]
    where = zip(windows.tolist(), places.tolist(), strict=True)
    tokens = torch.tensor([rows[w][0][rows[w][1][place]] for w, place in where])
    return store.rows(index)[0], tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("runs/demo-data/store"))
    parser.add_argument("--out", type=Path, default=Path("runs/differences"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--kinds", nargs="+", default=sorted({c.kind for c in CHANGES}))
    parser.add_argument("--num_latents", type=int, default=2_048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=NOISE, help="in median norms")
    parser.add_argument("--pairs", type=int, default=98_304, help="of the store, held-out included")
    args = parser.parse_args()
    keep_freed_memory()
    if not args.store.exists():
        raise SystemExit(f"'{args.store}' is no activation store; `make demo` makes one.")
    x, tokens = pairs_of(ActivationStore.open(args.store), args.pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "differences.jsonl"
    done = [json.loads(line) for line in file.open(encoding="utf-8")] if file.exists() else []
    known = {(Change(**r["change"]), r["variant"], r["seed"]) for r in done}
    changes = [change for change in CHANGES if change.kind in args.kinds]
    todo = [
        (change, variant, seed)
        for seed in range(args.seeds)
        for change in changes
        for variant in args.variants
        if (change, variant, seed) not in known
    ]
    with file.open("a", encoding="utf-8") as out:
        for change, variant, seed in tqdm(todo, desc="Differences", unit="run"):
            done.append(investigate(change, x, tokens, variant, seed, args))
            out.write(json.dumps(done[-1]) + "\n")
            out.flush()
    print(table(done))


if __name__ == "__main__":
    main()
