"""`python -m delphi_adapters explain RUN`: what latents stand for, and which of them matter."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsify_crosscoder.command_options import add_options, read_options
from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.filter import FilterOptions, FilterRecord, filter_crosscoder
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.records import read_json
from sparsify_crosscoder.runs.models import check_model, ends_of

from ..clients import AnthropicClient
from ..clients.costs import say_costs
from ..clients.judge import NO_JUDGE, fitting, make_client
from ..clients.judge_time import say_computed
from ..clients.stopping import Stopped, run_asking
from ..delphi import compat  # noqa: F401
from ..delphi.crosscoder_cache import CacheOptions, CrosscoderLatentCache, digest
from ..delphi.run_text import RunText
from ..explaining.autointerp import RAW, Autointerp, JudgingConfig
from ..explaining.choosing import chosen_latents, filter_scores
from ..explaining.descriptions import FILE as DESCRIPTIONS
from ..explaining.descriptions import Descriptions, describe, table_columns
from ..explaining.summary import summarise
from .judge_options import add_judge_options, execute_asking, judge_config

# isort: split
from delphi.clients import Client

if TYPE_CHECKING:
    from sparsify_crosscoder.runs.config import RunConfig

SAMPLED = 24  # latents that an estimate looks at


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute_asking(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Cache, filter, explain, flag, score and sort; print a summary and return it."""
    from sparsify_crosscoder.hardware import pick_device
    from sparsify_crosscoder.runs.config import load_run_config

    device = pick_device(args.device)
    folder = args.out or args.run / "delphi"
    options = load_run_config(args.run, args.hf_token, trust_remote_code=args.trust_remote_code)
    crosscoder = Crosscoder.load_one(args.run, args.seed, device)
    latents = chosen_latents(
        args.latents,
        crosscoder,
        lambda: filter_scores(_filtered(args, options, crosscoder, folder, device)),
    )
    asked = judge_config(args)
    asked.check()
    client = None
    if args.judge != NO_JUDGE:
        client = make_client(asked, folder, dry_run=args.dry_run)

    text = RunText.of_run(args.run, device, args.hf_token, trust_remote_code=args.trust_remote_code)
    cache = CrosscoderLatentCache(
        crosscoder,
        text,
        folder / RAW,
        source=args.source,
        options=CacheOptions(
            ctx_len=args.ctx_len, windows=args.windows, outlier_multiple=options.outlier_multiple
        ),
    )
    if not cache.writer.finished:
        cache.run()
        cache.verify()
    autointerp = Autointerp(cache, folder, judging_config(args), run=args.run, judge=args.judge)
    if not autointerp.judged:
        return _described(args, options, autointerp, crosscoder, latents)
    pending = autointerp.pending(latents)
    dead = int(cache.statistics.dead[latents].sum())
    print(
        f"{len(latents):,} latents, {dead:,} of them dead; {len(pending):,} to ask "
        f"{args.judge} about"
    )
    sample = pending[:: max(len(pending) // SAMPLED, 1)][:SAMPLED]
    prompts, scale = autointerp.prompts(sample), len(pending) / max(len(sample), 1)
    estimate = say_costs(client, prompts, scale, f"{len(pending):,} latents")
    if client is None and prompts:
        say_computed(args.judge, device, prompts, scale)
    if args.dry_run:
        return {"pending": len(pending), "estimate": estimate.to_dict(), "stopped": None}

    assert client is not None
    filtered = None if args.no_filter else _filtered(args, options, crosscoder, folder, device)
    stopped = None
    try:
        run_asking(_ask(autointerp, client, latents, args), client)
    except Stopped as reason:
        stopped = str(reason)
    result = {
        "run": str(args.run),
        "judge": args.judge,
        **summarise(autointerp, crosscoder, latents, filtered, _columns(folder)),
        "estimate": estimate.to_dict(),
        "stopped": stopped,
    }
    if isinstance(client, AnthropicClient):
        result["ledger"] = client.ledger.summary()
        print(f"Answers cost ${client.ledger.cost:.4f}, those of earlier runs included.")
    print(f"Everything is in '{folder}'; the table of all latents is features.parquet.")
    atomic_write_json(folder / "summary.json", result)
    return result


def _described(
    args: argparse.Namespace,
    options: RunConfig,
    autointerp: Autointerp,
    crosscoder: Crosscoder,
    latents: Sequence[int],
) -> dict[str, Any]:
    """What is counted and computed of latents where nobody is asked."""
    folder, dead = autointerp.folder, autointerp.cache.statistics.dead
    alive = [latent for latent in latents if not dead[latent]]
    print(f"{len(latents):,} latents, {len(latents) - len(alive):,} of them dead; no judge to ask")
    if args.dry_run:
        return {"pending": 0, "estimate": {"requests": 0}, "stopped": None}
    ends = ends_of(options, crosscoder.sources)
    for end in ends:
        check_model(end.model, end.revision, end.checkpoint)

    def language_model(source: int) -> tuple[Any, Any]:
        return load_language_model(
            ends[source].model,
            device=crosscoder.device,
            dtype=options.model_dtype,
            revision=ends[source].revision,
            token=options.hf_token,
            trust_remote_code=options.trust_remote_code,
        )

    found = describe(autointerp.cache, crosscoder, alive, language_model)
    for source, why in found.left_out.items():
        print(f"No promoted tokens of {ends[source].model}: {why}.")
    found.save(folder)
    filtered = None
    if not args.no_filter:
        filtered = _filtered(args, options, crosscoder, folder, crosscoder.device)
    result = {
        "run": str(args.run),
        "judge": NO_JUDGE,
        **summarise(autointerp, crosscoder, latents, filtered, table_columns(found)),
        "stopped": None,
    }
    print(f"Everything is in '{folder}'; the table of all latents is features.parquet.")
    atomic_write_json(folder / "summary.json", result)
    return result


def _columns(folder: Path) -> Mapping[int, Mapping[str, str | None]]:
    """What was described before, if it was."""
    return table_columns(Descriptions.load(folder) if (folder / DESCRIPTIONS).exists() else None)


async def _ask(
    autointerp: Autointerp, client: Client, latents: Sequence[int], args: argparse.Namespace
) -> None:
    most = args.max_concurrent or fitting(client)
    await autointerp.run(client, latents, most)
    await autointerp.sort(client, latents, most)


def judging_config(args: argparse.Namespace) -> JudgingConfig:
    return JudgingConfig(
        num_examples=args.num_examples,
        example_ctx_len=args.example_ctx_len,
        n_examples_shown=args.n_examples_shown,
        threshold=args.threshold,
    )


def _filtered(
    args: argparse.Namespace,
    options: RunConfig,
    crosscoder: Crosscoder,
    folder: Path,
    device: torch.device,
) -> dict[str, Any]:
    """What the false-exclusive filter says, kept in the folder for the next start."""
    from sparsify_crosscoder.runs.pairs import load_pairs

    cfg = read_options(FilterOptions, vars(args)).config(options)
    settings = {"weights": digest(crosscoder), "filter": asdict(cfg)}
    path = folder / "filter.json"
    if path.exists():
        kept = read_json(path, FilterRecord, "Delete it, and the latents are filtered again.")
        if kept.get("settings") == settings:
            return kept
    result = {
        "settings": settings,
        **filter_crosscoder(crosscoder, load_pairs(options, device), cfg).to_dict(),
    }
    atomic_write_json(path, result)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m delphi_adapters explain",
        description="Describe latents of a run by their characteristic words and the tokens that "
        "they promote, or with a --judge, a language model, explain, flag and score them (B.4.1, "
        "B.4.2) through delphi's pipeline. A run that was stopped goes on; no answer is "
        "paid for twice. Without --latents: those that are exclusive by their norm.",
    )
    default = JudgingConfig()
    parser.add_argument("run", type=Path, help="run folder")
    add_judge_options(parser, default=NO_JUDGE)
    parser.add_argument("--out", type=Path, help="folder for the results (RUN/delphi)")
    parser.add_argument(
        "--latents",
        nargs="+",
        default=["exclusive"],
        help="numbers of latents, 'exclusive', 'kept' by the filter or 'all' (exclusive)",
    )
    parser.add_argument("--source", type=int, default=0, help="whose tokens are shown (0)")
    parser.add_argument("--ctx_len", type=int, default=256, help="tokens of a cached row (256)")
    parser.add_argument("--windows", type=int, help="windows of the text to cache (all)")
    for name, meaning in (
        ("num_examples", "examples that an explanation is made from"),
        ("example_ctx_len", "tokens of an example"),
        ("n_examples_shown", "examples in one request of the detection test"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{meaning} ({value})")
    parser.add_argument(
        "--threshold",
        type=float,
        default=default.threshold,
        help=f"least detection score of an interpretable latent ({default.threshold})",
    )
    parser.add_argument("--seed", type=int, help="which of several --init_seeds")
    parser.add_argument("--no_filter", action="store_true", help="without the filter's verdicts")
    add_options(parser, FilterOptions)
    return parser
