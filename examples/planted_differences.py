"""What is first in the list of differences where it is known what differs, and how small and rare?

    python examples/planted_differences.py --store runs/demo-data/store --out runs/differences

On real activations of one model, from an activation store such as the one that `make demo` leaves.
The second "model" is the same activations with a known change and a little independent noise, as
near to the first as a fine-tune may be:

isolated  a direction on random pairs
token     a direction wherever one token occurs, which both models see
rank-one  a direction as strong as the first model's activation along another one
shift     a direction on all pairs
nothing   noise alone

Sizes are multiples of the median norm. For each change, architecture and seed the table names the
first entry of the list that has the direction, by its place and kind. A run that was stopped goes
on where it was; everything is in `differences.jsonl`. Each run takes about a minute on a core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from nulls_and_plants import VARIANTS, Control, train
from torch import Tensor
from tqdm.auto import tqdm

from sparsify_crosscoder import ActivationStore
from sparsify_crosscoder.evaluation.differences import (
    DifferenceConfig,
    Differences,
    differences_of,
)
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.filter import filter_crosscoder
from sparsify_crosscoder.evaluation.noted_pairs import held_pairs
from sparsify_crosscoder.evaluation.plants import pair_tokens
from sparsify_crosscoder.store.tensor_stream import TensorStream
from sparsify_crosscoder.training.allocator import keep_freed_memory

NOISE = 0.01  # of the median norm, over all dimensions
PLANT_SEED = 2_000
TOP_DIMENSIONS = 5  # which hold most of the variance; no change is read from them
LIKE = 0.8
"""Cosine from which an entry's direction is the one that was planted."""


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


class Pairs(NamedTuple):
    """Pairs of one model."""

    activations: Tensor
    """`[N, D]`."""

    tokens: Tensor
    """The token of each, `[N]`."""

    texts: Tensor
    """Which text each is from, `[N]`."""


@dataclass(frozen=True)
class Found:
    """Where in the list a change is."""

    change: Change
    variant: str
    seed: int
    findings: int
    fve: float
    rank: int | None = None
    """Among the findings, or else among all entries, of the first with the planted direction."""

    finding: bool = False
    kind: str | None = None
    verdict: str | None = None
    cosine: float = 0.0
    """Of its direction with the one that was planted; where there is none, the best of any."""

    @property
    def place(self) -> str:
        """Its rank and kind; the rank in brackets where it is no finding."""
        if self.rank is None:
            return "lost"
        return f"{self.rank if self.finding else f'({self.rank})'} {self.kind}, {self.verdict}"


def plant(change: Change, pairs: Pairs, seed: int, noise: float = NOISE) -> Control:
    """Pairs of a model with the same after a change; `noise` is in median norms."""
    generator = torch.Generator().manual_seed(PLANT_SEED + seed)
    x = pairs.activations.float()
    centred = x - x.mean(0)
    norm = centred.norm(dim=1).median()
    direction = F.normalize(torch.randn(x.shape[1], generator=generator), dim=0)
    if change.kind == "isolated":
        where = (torch.rand(len(x), generator=generator) < change.share).float()
    elif change.kind == "token":
        shares = torch.bincount(pairs.tokens) / len(x)
        where = (pairs.tokens == (shares - change.share).abs().argmin()).float()
    elif change.kind == "rank-one":
        read = torch.randn(x.shape[1], generator=generator)
        read[centred.var(0).topk(TOP_DIMENSIONS).indices] = 0
        where = centred @ read / (centred @ read).std()
    else:
        where = torch.full((len(x),), float(change.kind == "shift"))
    strength = change.size * norm * where
    noisy = x + noise * norm / x.shape[1] ** 0.5 * torch.randn(x.shape, generator=generator)
    other = noisy + strength[:, None] * direction
    return Control(f"{change.name}-{seed}", [x, other], direction, strength != 0, seed)


def investigate(
    change: Change, pairs: Pairs, variant: str, seed: int, args: argparse.Namespace
) -> Found:
    """Train one architecture on a change, and look it up in the list of differences."""
    control = plant(change, pairs, seed, args.noise)
    name = f"{control.name}-{variant}"
    crosscoder, summary = train(control, variant, args, args.out / "runs" / name)
    config = FilterConfig(pairs=len(pairs.texts))
    filtered = filter_crosscoder(crosscoder, TensorStream(control.activations), config)
    held = held_pairs(control.activations, pairs.texts)
    listed = differences_of(crosscoder, held, filtered, DifferenceConfig.of(config))
    nothing = Found(change, variant, seed, len(listed.findings), summary["fve"])
    return looked_up(listed, control, nothing)


def looked_up(listed: Differences, control: Control, nothing: Found) -> Found:
    """The first entry with the planted direction; `nothing` where there is none."""
    assert control.direction is not None
    best = 0.0
    for shown in (listed.findings, listed.entries):
        for rank, entry in enumerate(shown, 1):
            cosine = float(F.cosine_similarity(entry.direction.float(), control.direction, dim=0))
            if entry.kind == "map":  # what it reads and what it writes may both be turned round
                cosine = abs(cosine)
            best = max(best, cosine)
            if entry.source == 1 and cosine >= LIKE:
                return replace(
                    nothing,
                    rank=rank,
                    finding=entry.finding,
                    kind=entry.kind,
                    verdict=entry.verdict,
                    cosine=cosine,
                )
    return replace(nothing, cosine=best)


def lines(results: Sequence[Found]) -> list[str]:
    """One line per change and architecture of a Markdown table."""
    seeds = sorted({one.seed for one in results})
    head = ["change", "size", "share", "architecture", *(f"seed {seed}" for seed in seeds)]
    rows = [[*head, "findings"], ["---"] * (len(head) + 1)]
    for change, variant in dict.fromkeys((one.change, one.variant) for one in results):
        mine = {o.seed: o for o in results if (o.change, o.variant) == (change, variant)}
        cells = [change.kind, f"{change.size:g}", f"{change.share:.2%}", variant]
        cells += ["-" if seed not in mine else mine[seed].place for seed in seeds]
        rows.append([*cells, ", ".join(str(one.findings) for one in mine.values())])
    return [f"| {' | '.join(row)} |" for row in rows]


def pairs_of(store: ActivationStore, count: int) -> Pairs:
    """So many random pairs of a store, of its first source."""
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(PLANT_SEED))
    index = order[:count]
    tokens = torch.from_numpy(pair_tokens(store, 0))[index]
    return Pairs(store.rows(index)[0], tokens, store.notes(index).text_id)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("runs/demo-data/store"))
    parser.add_argument("--out", type=Path, default=Path("runs/differences"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["rdfc"])
    parser.add_argument("--kinds", nargs="+", default=sorted({c.kind for c in CHANGES}))
    parser.add_argument("--num_latents", type=int, default=1_024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=NOISE, help="in median norms")
    parser.add_argument("--pairs", type=int, default=65_536, help="of the store")
    args = parser.parse_args()
    keep_freed_memory()
    if not args.store.exists():
        raise SystemExit(f"'{args.store}' is no activation store; `make demo` makes one.")
    pairs = pairs_of(ActivationStore.open(args.store), args.pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "differences.jsonl"
    done = read_results(file)
    known = {(one.change, one.variant, one.seed) for one in done}
    todo = [
        (change, variant, seed)
        for seed in range(args.seeds)
        for change in CHANGES
        for variant in args.variants
        if change.kind in args.kinds and (change, variant, seed) not in known
    ]
    with file.open("a", encoding="utf-8") as out:
        for change, variant, seed in tqdm(todo, desc="Differences", unit="run"):
            done.append(investigate(change, pairs, variant, seed, args))
            out.write(json.dumps(asdict(done[-1])) + "\n")
            out.flush()
    print("\n".join(lines(done)))


def read_results(file: Path) -> list[Found]:
    """What is in a file of results; nothing if there is none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as rows:
        return [Found(**row | {"change": Change(*row["change"])}) for row in map(json.loads, rows)]


if __name__ == "__main__":
    main()
