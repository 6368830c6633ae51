"""`sparsify-crosscoder filter RUN`: which exclusive latents of a run stand for a difference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from ..command_line import add_hub_options, execute
from ..crosscoders import Crosscoder
from ..evaluation.clusters import clusters, duplicates
from ..evaluation.false_exclusives import FilterConfig, FilteredLatents, Verdict, filter_exclusives
from ..harvest.model_identity import source_names
from ..scorability import rarity, rarity_line
from ..store.stream import ActivationStream

SHOWN = 10


class FilteredLatent(TypedDict):
    """Of a latent, what is read again."""

    latent: int
    source: int
    score: float


class Filtered(TypedDict):
    """What is read again of what `judge` returns, where it was kept as JSON."""

    verdicts: list[dict[str, int]]
    clusters: list[dict[str, Any]]
    duplicates: list[dict[str, Any]]
    latents: list[FilteredLatent]


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Judge the exclusive latents of a run's crosscoder, print the outcome and return it."""
    from ..hardware import pick_device
    from ..runs.config import load_run_config
    from ..runs.pairs import load_pairs

    device = pick_device(args.device)
    options = load_run_config(args.run, args.hf_token, trust_remote_code=args.trust_remote_code)
    crosscoder = Crosscoder.load_one(args.run, args.seed, device)
    cfg = filter_config(args, options.outlier_multiple)
    result = {"run": str(args.run), **judge(crosscoder, load_pairs(options, device), cfg)}
    show(result, source_names(crosscoder.sources))
    return result


def judge(crosscoder: Crosscoder, pairs: ActivationStream, cfg: FilterConfig) -> dict[str, Any]:
    """Verdicts, clusters and duplicates of a crosscoder's exclusive latents, as JSON values."""
    filtered = filter_exclusives(crosscoder, pairs, cfg)
    found = clusters(crosscoder, filtered)
    return {
        "arch": crosscoder.arch,
        "filter": asdict(cfg),
        "pairs": filtered.pairs,
        "verdicts": [filtered.counts(s) for s in range(len(crosscoder.d_sources))],
        "not_scorable": [
            _not_scorable(filtered, s, pairs.num_pairs) for s in range(len(crosscoder.d_sources))
        ],
        "clusters": [cluster.to_dict() for cluster in found],
        "duplicates": duplicates(filtered),
        "latents": filtered.rows(),
    }


def _not_scorable(filtered: FilteredLatents, source: int, available: int) -> dict[str, Any]:
    """Why latents of one source have no score: see `rarity`; and `not_linear`, how many are not."""
    mine = filtered.sources == source
    rare = mine & (filtered.verdicts == Verdict.TOO_RARE)
    found = rarity(filtered.firings[rare].tolist(), filtered.pairs, filtered.min_firings, available)
    return {**found, "not_linear": filtered.counts(source)["not_linear"]}


def show(result: dict[str, Any], names: Sequence[str]) -> None:
    """Print what `judge` found, with a name for each source."""
    for name, counts, why in zip(names, result["verdicts"], result["not_scorable"], strict=True):
        unscored = counts["too_rare"] + counts["not_linear"]
        print(
            f"{name}: {sum(counts.values()):,} latents called exclusive; {counts['kept']:,} kept, "
            f"{counts['predictable']:,} predictable from the others, {counts['shadow']:,} shadows "
            f"of them, {unscored:,} not scorable"
        )
        if counts["too_rare"]:
            print(f"  not scorable: {rarity_line(why)}")
        if counts["not_linear"]:
            least = result["filter"]["min_own"]
            print(
                f"  not scorable: of {counts['not_linear']:,} not even their own model predicts "
                f"the activation (R2 below {least:g})"
            )
    print(f"{len(result['duplicates']):,} pairs of latents on different sides fire together")
    print(f"{len(result['clusters']):,} clusters of kept latents; the most exclusive:")
    for cluster in result["clusters"][:SHOWN]:
        latents = ", ".join(map(str, cluster["latents"][:5]))
        if len(cluster["latents"]) > 5:
            latents += f" and {len(cluster['latents']) - 5} more"
        print(
            f"  score {cluster['score']:.3f}  energy {cluster['energy']:.3g}  "
            f"{names[cluster['source']]}  fires on {cluster['firings']:,} pairs"
            f"{' (dense)' if cluster['dense'] else ''}  latents {latents}"
        )


def filter_config(args: argparse.Namespace, outlier_multiple: float) -> FilterConfig:
    """What the options of `add_filter_options` ask for."""
    return FilterConfig(
        pairs=args.pairs,
        predictability=args.predictability,
        shadow=args.shadow,
        min_firings=args.min_firings,
        outlier_multiple=outlier_multiple,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder filter",
        description="Tell the exclusive latents of a run that stand for a difference from those "
        "that the other models predict as well. Copies of one difference are merged.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    add_filter_options(parser)
    parser.add_argument("--seed", type=int, default=None, help="which of several --init_seeds")
    return parser


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that filters the latents of a run."""
    default = FilterConfig()
    parser.add_argument(
        "--pairs", type=int, default=default.pairs, help=f"pairs, at most ({default.pairs:,})"
    )
    parser.add_argument(
        "--predictability",
        type=float,
        default=default.predictability,
        help="largest R2 from the other models, as a multiple of that from a latent's own "
        f"({default.predictability})",
    )
    parser.add_argument(
        "--shadow",
        type=float,
        default=default.shadow,
        help="largest effect on what the other models have of their own, as a multiple of that on "
        f"a latent's own ({default.shadow})",
    )
    parser.add_argument(
        "--min_firings",
        type=int,
        default=default.min_firings,
        help=f"pairs on which a latent must fire to be scorable ({default.min_firings})",
    )
    parser.add_argument("--device", default=None, help="device to run on")
    add_hub_options(parser)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
