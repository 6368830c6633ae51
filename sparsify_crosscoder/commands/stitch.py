"""`sparsify-crosscoder stitch RUN`: affine maps between the residual streams of a run's models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..command_line import add_hub_options, execute
from ..harvest.harvest import run_harvest
from ..harvest.model_identity import source_names
from ..harvest.source import Source
from ..interventions.command_parts import device_of
from ..interventions.stitching import Stitching, StitchingConfig, check_folder, fit_stitching
from ..interventions.unseen_text import unseen_text
from ..store.tensor_stream import TensorStream

if TYPE_CHECKING:
    from ..runs.config import RunConfig

PAIRS_PER_DIMENSION = 10  # fewer, and a linear map learns the noise of its pairs
MUCH = 0.01  # of R2


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stitch two of a run's models together, write and print the outcome and return it."""
    from ..runs.config import load_run_config
    from ..runs.models import load_run_sources
    from ..runs.provenance import source_of_run

    cfg = StitchingConfig(
        sources=(args.sources[0], args.sources[1]),
        inversion_weight=args.inversion_weight,
        steps=args.steps,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    if args.pairs < 1 or args.held_out_pairs < 1:
        raise ValueError("--pairs and --held_out_pairs must be positive.")
    options = load_run_config(args.run, args.hf_token, trust_remote_code=args.trust_remote_code)
    names = [options.model, *options.partners]
    if max(cfg.sources) >= len(names):
        raise ValueError(f"The run has sources 0 to {len(names) - 1}, not {list(cfg.sources)}.")
    check_folder(args.out)
    device = device_of(args)
    dataset = _load_texts(args, options) if args.dataset else None
    sources = load_run_sources(options, device)
    widths = [sources[s].width for s in cfg.sources]
    text = unseen_text(
        args.run,
        options,
        sources,
        pairs=args.pairs,
        least_pairs=min(args.pairs, PAIRS_PER_DIMENSION * max(widths)),
        held_out_pairs=args.held_out_pairs,
        dataset=dataset,
    )
    datasets = args.dataset or [options.dataset, *options.extra_datasets]
    fitted, held_out = (
        harvested(sources, text.windows, rows, options.batch_size)
        for rows in (text.fitted, text.held_out)
    )
    stitching = fit_stitching(
        TensorStream([x[: args.pairs] for x in fitted], seed=args.seed),
        TensorStream(held_out),
        cfg,
        sources=[source_of_run(source) for source in sources],
        text={"datasets": datasets, **text.facts},
        device=device,
    )
    stitching.save(args.out)
    show(stitching)
    return {
        "run": str(args.run),
        "out": str(args.out),
        "config": asdict(cfg),
        "sources": stitching.sources,
        "text": stitching.text,
        "report": stitching.report,
    }


def harvested(
    sources: Sequence[Source], windows: Dataset, rows: Tensor, batch_size: int
) -> list[Tensor]:
    """Activations at all pairs of some windows, `[n, D_s]` per source, in memory."""
    counts = torch.tensor(windows["num_pairs"][:])[rows]
    with tqdm(total=int(counts.sum()), desc="Harvesting", unit="pair") as bar:
        harvest = run_harvest(
            sources, windows, rows.tolist(), batch_size=batch_size, progress=bar.update
        )
    return harvest.activations


def show(stitching: Stitching) -> None:
    """Print what the text was, and how well both maps and both round trips do."""
    text, report = stitching.text, stitching.report
    print(
        f"Of {text['looked_at']:,} texts, {text['trained_on']:,} that the run trained on are left "
        f"out, {text['partly_trained_on']:,} that share a passage with those, and "
        f"{text['like_held_out']:,} that share one with held-out text."
    )
    print(
        f"{report['pairs']:,} pairs of {text['texts_fitted']:,} texts fitted, "
        f"{report['held_out_pairs']:,} of {text['texts_held_out']:,} held out; R2 of these:"
    )
    numbers = stitching.cfg.sources
    names = dict(zip(numbers, source_names(stitching.sources), strict=True))
    rows = [(f"{names[d['from']]} to {names[d['to']]}", d) for d in report["directions"]]
    rows += [(f"{names[d['source']]} and back", d) for d in report["round_trips"]]
    width = max(len(name) for name, _ in rows)
    print(f"{'':<{width}}  trained  closed form  difference  without top 5 (closed form)")
    for name, scores in rows:
        print(
            f"{name:<{width}}  {_number(scores['r2'])}  {_number(scores['r2_closed_form']):>11}  "
            f"{_number(scores['difference']):>10}  {_number(scores['r2_without_top5'])} "
            f"({_number(scores['r2_without_top5_closed_form']).strip()})"
        )

    worst = min(d["difference"] or 0.0 for d in report["directions"])
    if worst < -MUCH:
        print(
            f"The trained maps explain up to {-worst:.4f} less than the closed form: lower "
            f"--inversion_weight for maps that are less nearly inverse and explain more."
        )


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4f'):>7}"


def _load_texts(args: argparse.Namespace, options: RunConfig) -> Dataset:
    from ..text.texts import load_texts

    return load_texts(
        args.dataset[0],
        split=args.split,
        data_args=args.data_args,
        text_column=args.text_column or options.text_column,
        extra_datasets=args.dataset[1:],
        shuffle_seed=options.shuffle_seed,
    )


def _parser() -> argparse.ArgumentParser:
    default = StitchingConfig()
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder stitch",
        description="Fit an affine map from each of two models' residual streams to the other's, "
        "on text that the run did not train on. What shares a passage with text that it did train "
        "on is left out.",
    )
    parser.add_argument("run", type=Path, help="run folder: its models, hookpoints and tokenizers")
    parser.add_argument("--out", type=Path, required=True, help="folder for the stitching")
    parser.add_argument(
        "--dataset",
        nargs="+",
        metavar="D",
        help="other text; without, what the run held out and what lies behind its --max_examples",
    )
    parser.add_argument("--split", default="train", help="split of the datasets (train)")
    parser.add_argument("--text_column", help="column of the datasets (the run's)")
    parser.add_argument("--data_args", default="", help="arguments of the first, as in training")
    parser.add_argument("--pairs", type=int, default=131_072, help="to fit, at most (131,072)")
    parser.add_argument(
        "--held_out_pairs", type=int, default=8192, help="of whole texts, to judge by (8,192)"
    )
    parser.add_argument(
        "--sources",
        type=int,
        nargs=2,
        default=list(default.sources),
        metavar=("A", "B"),
        help="which two of the run's models, by number (0 1)",
    )
    parser.add_argument(
        "--inversion_weight",
        type=float,
        default=default.inversion_weight,
        help=f"weight of the round trips' errors ({default.inversion_weight})",
    )
    parser.add_argument(
        "--steps", type=int, default=default.steps, help=f"training steps ({default.steps})"
    )
    parser.add_argument(
        "--learning_rate",
        type=float,
        default=default.learning_rate,
        help=f"of Adam at the first step ({default.learning_rate:g})",
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the pairs (0)")
    parser.add_argument("--device", default=None, help="device to run on")
    add_hub_options(parser)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser
