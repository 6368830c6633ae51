"""How rare may a latent be, and the filter still tells what it stands for?

    python examples/benchmarks/scorability.py --store runs/demo-data/store --json scorability.json

On real activations, from an activation store such as the one that `make demo` leaves. Encoders are
fitted on a third of the texts, and everything is judged on the others, by the filter's defaults:

both      latents of the first model that fire at one token, which the second model sees as well:
          a null that can fail, as what each model makes of the token is its own
planted   latents that fire where a random direction was added to the first model alone, at a
          multiple of the median norm of its activations, on as many pairs as a token has
large     how many latents stay unjudged in a dictionary of 131,072 at k = 200: exclusive latents
          whose encoders are single pairs' whitened activations, and whose thresholds are set so
          that rates are as in training: log-normal with mean k / M and the spread of `--spread`
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step_report import table
from torch import Tensor

from sparsify_crosscoder import ActivationStore, DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.crosscoders.rdfc import inverse_root
from sparsify_crosscoder.evaluation.false_exclusives import (
    FilterConfig,
    FilteredLatents,
    judge_exclusives,
)
from sparsify_crosscoder.evaluation.latent_moments import bytes_needed
from sparsify_crosscoder.evaluation.verdicts import Verdict
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.store.normalization import estimate_normalization, within_norm
from sparsify_crosscoder.store.tensor_stream import TensorStream
from sparsify_crosscoder.text.window_numbers import window_numbers

EDGES = (10, 15, 25, 45, 90, 180, 500)
SIZES = (0.5, 0.25, 0.125)
LATENTS, K = 131_072, 200
RIDGE = 1e-3


@dataclass
class Pairs:
    """Normalised pairs without outliers."""

    x: list[Tensor]
    texts: Tensor
    tokens: Tensor
    """Of the first model."""

    def at(self, chosen: Tensor) -> Pairs:
        return Pairs([x[chosen] for x in self.x], self.texts[chosen], self.tokens[chosen])

    def __len__(self) -> int:
        return len(self.texts)


def read(store: ActivationStore, most: int | None) -> Pairs:
    rows = torch.arange(min(len(store), most or len(store)))
    raw = store.rows(rows)
    windows, places = store.provenance(rows)
    texts = torch.from_numpy(window_numbers(store.windows, "text_id"))[windows]
    ids, used = store.windows["input_ids_0"][:], store.windows["pairs_0"][:]
    tokens = torch.tensor(
        [ids[w][used[w][p]] for w, p in zip(windows.tolist(), places.tolist(), strict=True)]
    )
    kept = within_norm(raw, 2.0)
    means, factors = estimate_normalization([x[kept] for x in raw])
    x = [(x.float() - m) * f for x, m, f in zip(raw, means, factors, strict=True)]
    return Pairs(x, texts, tokens).at(kept)


def split(pairs: Pairs, generator: torch.Generator) -> tuple[Pairs, Pairs]:
    """A third of the texts to fit encoders on, and the others."""
    texts, number = pairs.texts.unique(return_inverse=True)
    fitting = torch.rand(len(texts), generator=generator) < 1 / 3
    return pairs.at(fitting[number]), pairs.at(~fitting[number])


def crosscoder_of(
    encoders: Sequence[Tensor], levels: Sequence[Tensor]
) -> DedicatedFeatureCrosscoder:
    """A DFC of exclusive latents alone: encoders `[L_s, d_s]` that fire above levels `[L_s]`."""
    most = max(len(e) for e in encoders)
    size, share = 2 * most + 2, most / (2 * most + 2)
    cfg = DFCConfig(num_latents=size, k=4, exclusive_fractions=[share] * 2, screening="exact")
    crosscoder = DedicatedFeatureCrosscoder([e.shape[1] for e in encoders], cfg).eval()
    with torch.no_grad():
        crosscoder.encoder.bias.fill_(-1e9)
        for s, (encoder, level) in enumerate(zip(encoders, levels, strict=True)):
            block = crosscoder.partition.exclusive(s)
            crosscoder.encoder.weights[s][: len(encoder)] = encoder
            crosscoder.decoders[s][: len(encoder)] = F.normalize(encoder, dim=1)
            crosscoder.encoder.bias[block.start : block.start + len(encoder)] = -level
        crosscoder.threshold.fill_(1e-9)
    return crosscoder


def judge(
    crosscoder: DedicatedFeatureCrosscoder, pairs: Pairs, counts: Sequence[int], args: Any
) -> FilteredLatents:
    blocks = [crosscoder.partition.exclusive(s) for s in (0, 1)]
    candidates = [torch.arange(b.start, b.start + n) for b, n in zip(blocks, counts, strict=True)]
    stream = TensorStream(pairs.x, seed=0, text_ids=pairs.texts)
    cfg = FilterConfig(pairs=args.pairs, outlier_multiple=0)
    return judge_exclusives(crosscoder, stream, cfg, candidates=candidates)


def whitened_means(x: Tensor, means: Tensor) -> Tensor:
    """Directions `[L, D]` that tell pairs with such means from all others (linear discriminant)."""
    covariance = torch.cov(x.T).double()
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean())
    return torch.linalg.solve(covariance, (means - x.mean(0)).double().T).T.float()


def levels_of(x: Tensor, encoders: Tensor, firings: Tensor) -> Tensor:
    """Levels above which encoders fire on so many pairs `[L]`."""
    result = torch.zeros(len(encoders))
    for some in torch.arange(len(encoders)).split(256):
        most = int(firings[some].max()) + 1
        largest = (x @ encoders[some].T).topk(most, dim=0).values
        result[some] = largest.gather(0, firings[some][None])[0]
    return result


def controls(pairs: Pairs, args: Any, generator: torch.Generator) -> list[dict[str, Any]]:
    """Latents of both models and planted ones: how many of each are judged how, by firings."""
    fitting, judged = split(pairs, generator)
    most = int(max(pairs.tokens)) + 1
    seen, there = (torch.bincount(p.tokens, minlength=most) for p in (fitting, judged))
    tokens, kinds, firings = [], [], []
    for low, high in itertools.pairwise(EDGES):
        fit = ((there >= low) & (there < high) & (seen >= low / 2)).nonzero()[:, 0]
        chosen = fit[torch.randperm(len(fit), generator=generator)[: args.latents]]
        tokens += chosen.tolist()
    kinds += ["both"] * len(tokens)
    firings += there[tokens].tolist()
    means = torch.stack([fitting.x[0][fitting.tokens == t].mean(0) for t in tokens])
    encoders = [whitened_means(fitting.x[0], means)]
    median = fitting.x[0].norm(dim=1).median()
    x = judged.x[0].clone()
    for size in SIZES:
        for low, high in itertools.pairwise(EDGES):
            span = torch.rand(args.latents, generator=generator) * math.log(high / low)
            counts = (low * span.exp()).long()
            directions = F.normalize(
                torch.randn(args.latents, x.shape[1], generator=generator), dim=1
            )
            for direction, count in zip(directions, counts.tolist(), strict=True):
                rows = torch.randperm(len(x), generator=generator)[:count]
                x[rows] += size * median * direction
            encoders.append(whitened_means(fitting.x[0], fitting.x[0].mean(0) + directions))
            kinds += [f"planted, {size:g} of the norm"] * args.latents
            firings += counts.tolist()
    joined = torch.cat(encoders)
    level = levels_of(x, joined, torch.tensor(firings))
    crosscoder = crosscoder_of(
        [joined, torch.zeros(1, judged.x[1].shape[1])], [level, torch.ones(1)]
    )
    found = judge(
        crosscoder, Pairs([x, judged.x[1]], judged.texts, judged.tokens), (len(joined), 0), args
    )
    rows = []
    for kind in dict.fromkeys(kinds):
        for low, high in itertools.pairwise(EDGES):
            mine = torch.tensor(
                [k == kind and low <= f < high for k, f in zip(kinds, firings, strict=True)]
            )
            verdicts = found.verdicts[mine].tolist()
            share = {v.name.lower(): verdicts.count(v) / max(len(verdicts), 1) for v in Verdict}
            scores = found.score[mine]
            rows.append(
                {"kind": kind, "firings": [low, high - 1], "latents": len(verdicts)}
                | share
                | {
                    "score": scores.median().item() if len(scores) else None,
                    "score_error": found.measured.score.error[mine].median().item()
                    if len(scores)
                    else None,
                    "read": found.read,
                }
            )
    return rows


def large(pairs: Pairs, args: Any, generator: torch.Generator) -> dict[str, Any]:
    """Exclusive latents at the rates of a dictionary of 131,072, a sample of them."""
    fitting, judged = split(pairs, generator)
    encoders, levels, rates = [], [], []
    for x, other in zip(fitting.x, judged.x, strict=True):
        chosen = torch.randperm(len(x), generator=generator)[: args.sample]
        whiten = inverse_root(torch.cov(x.T).double(), torch.tensor(1e-3 * x.var().item()))
        white = ((x[chosen] - x.mean(0)).double() @ whiten @ whiten).float()
        spread = args.spread * torch.randn(args.sample, generator=generator)
        rate = (K / LATENTS) * (spread - args.spread**2 / 2).exp()
        firings = torch.poisson(rate * len(other), generator=generator).long()
        encoders.append(white)
        levels.append(levels_of(other, white, firings))
        rates.append(rate)
    started = time.perf_counter()
    found = judge(crosscoder_of(encoders, levels), judged, [args.sample] * 2, args)
    seconds = time.perf_counter() - started
    alive = found.firings > 0
    counts = {v.name.lower(): int((found.verdicts[alive] == v).sum()) for v in Verdict}
    unjudged = alive & ~found.scorable
    fired = found.firings[alive].double()
    old = alive & (found.firings < 200)
    return {
        "latents": len(alive),
        "alive": int(alive.sum()),
        "read": found.read,
        "firings_quantiles": fired.quantile(
            torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
        ).tolist(),
        "verdicts_of_alive": counts,
        "unjudged_of_alive": unjudged.sum().item() / max(int(alive.sum()), 1),
        "under_200_firings": old.sum().item() / max(int(alive.sum()), 1),
        "needed_quantiles": found.firings_needed[unjudged]
        .double()
        .quantile(torch.tensor([0.25, 0.5, 0.75]).double())
        .tolist()
        if unjudged.any()
        else [],
        "seconds": seconds,
        "gigabytes_at_paper_size": bytes_needed(13_108, 4096 + 2880) / 1e9,
    }


def control_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    kinds = [v.name.lower() for v in Verdict]
    head = ["latents of", "firings", "latents", *(k.replace("_", " ") for k in kinds), "score"]
    cells = [
        [
            row["kind"],
            f"{row['firings'][0]} to {row['firings'][1]}",
            str(row["latents"]),
            *(f"{row[kind]:.0%}" for kind in kinds),
            f"{row['score']:.2f} ± {row['score_error']:.2f}" if row["latents"] else "-",
        ]
        for row in rows
    ]
    return table(head, cells)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("runs/demo-data/store"))
    parser.add_argument(
        "--latents", type=int, default=60, help="of each kind and number of firings"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=1_000,
        help="of a large dictionary's exclusive latents, each side",
    )
    parser.add_argument(
        "--spread",
        type=float,
        default=1.2,
        help="standard deviation of the logarithm of their rates",
    )
    parser.add_argument(
        "--pairs", type=int, default=None, help="as of `sparsify-crosscoder filter`"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="60,000 pairs and few latents")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if not args.store.exists():
        raise SystemExit(f"'{args.store}' is no activation store; `make demo` makes one.")
    if args.quick:
        args.latents, args.sample = min(args.latents, 10), min(args.sample, 100)
    pairs = read(ActivationStore.open(args.store), 60_000 if args.quick else None)
    generator = torch.Generator().manual_seed(args.seed)
    rows = controls(pairs, args, generator)
    at_size = large(pairs, args, generator)
    print("\n".join(control_table(rows)))
    print(f"At {LATENTS:,} latents and k = {K}: {at_size}")
    if args.json:
        atomic_write_json(args.json, {"controls": rows, "large": at_size, "spread": args.spread})


if __name__ == "__main__":
    main(sys.argv[1:])
