"""`sparsify-crosscoder baselines A B --dataset D`: what the simplest methods see."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..command_line import execute, split_options
from ..command_options import add_options, option, read_options
from ..endings import DEBUG, prepare, take_debug
from ..evaluation.baselines.coder import CoderConfig
from ..evaluation.baselines.comparing import BaselineConfig, run_baselines
from ..hardware import pick_device
from ..harvest.model_identity import source_names
from ..runs.options import parse_run_config


@dataclass(frozen=True)
class Options:
    """Compare two models by the simplest methods in one pass over a text, without training: texts
    by the KL of next tokens, the likelihood and perplexity of their own words and the distance of
    activations; tokens that one model expects more; mean differences, principal components and a
    small coder of what B's activations have beyond A's. Any two models, and PEFT adapters. Options
    of `harvest` that say what is read and how, such as --hookpoints, --max_examples, --pairs,
    --ctx_len, --chat_format, --answers, --data_args, --model_dtype and --devices, are taken as
    well."""

    model_a: str = option(positional=True)
    """a model, or MODEL+ADAPTER, or an adapter's folder"""

    model_b: str = option(positional=True)
    """the other, such as its fine-tune"""

    dataset: str = option()
    """text that both read, as of `sparsify`"""

    shown: int = 5
    """entries of each method that are printed (default {default})"""

    memory: float = BaselineConfig.memory
    """bytes of activations that are held; of more, as many pairs as fit are drawn (default
    {default:,.0f})"""

    most_pairs: int | None = None
    """pairs that are read, the first ones of each text; 0 for all (default 15,000 on a CPU,
    minutes of work; all of them elsewhere and with --pairs)"""

    coder_steps: int = CoderConfig.steps
    """steps to train the small coder; 0 leaves it out (default {default})"""

    json: Path | None = None
    """also write everything to this file"""


# What the command decides, or has no use for.
_NOT_TAKEN = ("cache", "partners", "append", "resume", "save_dir", "run_name")


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    argv, debug = take_debug(argv)
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder baselines",
        usage="%(prog)s A B --dataset D [options] [options of harvest]",
        description=Options.__doc__,
        allow_abbrev=False,
    )
    add_options(parser, Options)
    names, own, harvest = split_options(parser, argv)
    for name in _NOT_TAKEN:
        if any(token.partition("=")[0] == f"--{name}" for token in harvest):
            prepare(parser)
            parser.error(f"--{name} has no meaning here; leave it off.")

    def run(args: argparse.Namespace) -> dict[str, Any]:
        return show(read_options(Options, vars(args)), harvest)

    execute(parser, run, [*names, *own, *([DEBUG] if debug else [])])


def show(options: Options, harvest: Sequence[str] = ()) -> dict[str, Any]:
    """Compare two models, print what is found first and return everything.

    `harvest` are further options, as on its command line.
    """
    models = [options.model_a, options.model_b]
    config = parse_run_config([models[0], options.dataset, "--partners", models[1], *harvest])
    coder = replace(CoderConfig(), steps=options.coder_steps)
    settings = BaselineConfig(config.outlier_multiple, options.memory, coder, options.most_pairs)
    found = run_baselines(config, pick_device(config.device), settings)
    revisions = [config.revision, *(config.partner_revisions or [None])]
    names = source_names(
        [{"name": n, "revision": r} for n, r in zip(models, revisions, strict=True)]
    )
    print(found.text(names, options.shown))
    return {"models": models, "dataset": options.dataset, **found.to_dict()}
