"""Options of an audit: its own, those of training, and files that hold both."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_line import add_hub_options
from sparsify_crosscoder.endings import prepare
from sparsify_crosscoder.scorability import FILTER_PAIRS

from ..clients.judge import NO_JUDGE
from ..commands.judge_options import add_judge_options, judge_config
from .plan import STAGES

PROG = "python -m delphi_adapters audit"

# What the audit itself decides when it trains.
_SET_BY_THE_AUDIT = ("cache", "partners", "resume", "save_dir", "run_name", "append")


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, and of the file that its --config names.

    Options of training are left unread in `.train`. The process exits with 2 where something does
    not make sense.
    """
    parser = make_parser()
    names, own, train = split(parser, argv)
    config = parser.parse_args(own).config
    if config is not None:
        of_file = [*_read_config(parser, config)]
        file_names, file_own, file_train = split(parser, of_file)
        names = names or file_names
        own = [*file_own, *own]
        given = {token.partition("=")[0] for token in train if token.startswith("--")}
        train = [token for group in _groups(file_train) if group[0] not in given for token in group]
        train += split(parser, argv)[2]
    args = parser.parse_args(own)
    if args.run is None and len(names) != 2:
        parser.error("name the two models: audit MODEL_A MODEL_B, or a trained --run.")
    if args.run is not None and (names or train):
        parser.error("--run is trained already: leave out the models and options of training.")
    for name in _SET_BY_THE_AUDIT:
        if any(token.partition("=")[0] == f"--{name}" for token in train):
            parser.error(f"--{name} is set by the audit; leave it off.")
    args.models, args.train = names, train
    _check(parser, args)
    return args


def split(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """The models' names, which stand first, the audit's own options, and the others."""
    names: list[str] = []
    rest = list(argv)
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    own, train = [], []
    known = parser._option_string_actions
    for group in _groups(rest):
        (own if group[0].partition("=")[0] in known else train).extend(group)
    return names, own, train


def _groups(tokens: Sequence[str]) -> list[list[str]]:
    """Each option with its values."""
    groups: list[list[str]] = []
    for token in tokens:
        if token.startswith("--") or token == "-h" or not groups:
            groups.append([])
        groups[-1].append(token)
    return groups


def _read_config(parser: argparse.ArgumentParser, path: Path) -> Iterator[str]:
    """A YAML file as the tokens of a command line."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        parser.error(f"there is no file '{path}' for --config.")
    except IsADirectoryError:
        parser.error(f"'{path}' is a folder; name a YAML file for --config.")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        parser.error(f"'{path}' is no YAML: {error}")
    if not isinstance(loaded, dict):
        parser.error(f"'{path}' has to name options and their values, such as `k: 200`.")
    models = [loaded.pop(name, None) for name in ("model_a", "model_b")]
    if all(models):
        yield from map(str, models)
    elif any(models):
        parser.error(f"'{path}' names one model; give model_a and model_b, or neither.")
    for name, value in loaded.items():
        if name == "config":
            parser.error(f"'{path}' names another --config; put all options into one file.")
        yield from _tokens(parser, str(name), value)


def _tokens(parser: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
    if value is None:
        return []
    action = parser._option_string_actions.get(f"--{name}")
    if action is not None and action.nargs == 0:
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("sample", "verify", "nulls"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} must not be negative.")
    if args.explain_limit is not None and args.explain_limit < 1:
        parser.error("--explain_limit must be at least 1.")
    if args.null_steps is not None and args.null_steps < 0:
        parser.error("--null_steps must not be negative; 0 leaves the comparison out.")
    if 0 not in args.strengths:
        args.strengths = [0.0, *args.strengths]
    if len(set(args.strengths)) < 2:
        parser.error("--strengths needs one besides 0.")
    try:
        judge_config(args).check()
    except ValueError as error:
        parser.error(str(error))
    if args.judge == NO_JUDGE and args.rubrics:
        parser.error("--rubrics are rated by a judge: name one with --judge.")


def make_parser() -> argparse.ArgumentParser:
    """The audit's own options."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} MODEL_A MODEL_B --dataset D [--judge J] [options] [options of training]",
        description="What differs between two language models, from their names to a report: "
        "harvest, train, filter, describe by words and tokens, with a judge also explain and flag, "
        "verify by steering both models, report. Every stage is a folder in --out; what is there "
        "already is not done again. "
        "Options of `sparsify --arch ...`, such as --arch, --hookpoints, --num_latents, --k and "
        "--max_steps, are passed on to training.",
        allow_abbrev=False,
    )
    prepare(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="(runs/audit)")
    parser.add_argument("--config", type=Path, help="YAML file of options, these or of training")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after a stage")
    parser.add_argument("--json", type=Path, help="also write the summary to this file")

    group = parser.add_argument_group("where to begin")
    group.add_argument(
        "--dataset",
        default="EleutherAI/SmolLM2-135M-10B",
        help="text that both models read, as of `sparsify`, or an activation store",
    )
    group.add_argument("--run", type=Path, help="a trained run, instead of the two models")
    group.add_argument("--stitching", type=Path, help="what `sparsify-crosscoder stitch` made")
    group.add_argument(
        "--stability_runs", type=Path, nargs="+", default=[], help="runs of other seeds to compare"
    )

    group = parser.add_argument_group("cache and filter")
    group.add_argument("--source", type=int, default=0, help="whose tokens the judge reads (0)")
    group.add_argument("--cache_ctx_len", type=int, default=256, help="tokens of a row (256)")
    group.add_argument("--cache_windows", type=int, help="windows of the text to cache (all)")
    group.add_argument(
        "--filter_pairs", type=int, default=FILTER_PAIRS, help=f"pairs ({FILTER_PAIRS:,})"
    )
    group.add_argument("--predictability", type=float, help="as of `sparsify-crosscoder filter`")
    group.add_argument("--shadow", type=float, help="as of `sparsify-crosscoder filter`")
    group.add_argument("--min_firings", type=int, help="as of `sparsify-crosscoder filter`")
    group.add_argument(
        "--null_steps",
        type=int,
        help="steps to train MODEL_A against itself, for comparison; 0: not (those of training)",
    )

    group = parser.add_argument_group("judge")
    add_judge_options(group, default=NO_JUDGE)
    group.add_argument(
        "--latents",
        nargs="+",
        default=["exclusive"],
        help="what to explain: 'exclusive' by their norm, 'kept' by the filter, 'all' or numbers",
    )
    group.add_argument("--explain_limit", type=int, help="a random sample of these, at most (all)")

    group = parser.add_argument_group("verification by steering (B.5)")
    group.add_argument(
        "--verify", type=int, default=50, help="flagged or kept latents at most (50)"
    )
    group.add_argument("--sample", type=int, default=20, help="random others beside them (20)")
    group.add_argument(
        "--nulls", type=int, default=5, help="shared latents and random directions a model (5)"
    )
    group.add_argument("--prompts", nargs="+", help="prompts (three open questions)")
    group.add_argument("--prompts_file", type=Path, help="a text file with one prompt a line")
    group.add_argument("--chat", choices=["auto", "yes", "no"], default="auto", help="(auto)")
    group.add_argument(
        "--strengths", type=float, nargs="+", default=list(map(float, range(11))), help="(0..10)"
    )
    group.add_argument("--max_new_tokens", type=int, default=200, help="of an answer (200)")
    group.add_argument("--temperature", type=float, default=0.7, help="of sampling (0.7)")
    group.add_argument("--top_p", type=float, default=0.9, help="nucleus of sampling (0.9)")
    group.add_argument("--generation_seed", type=int, default=0, help="noise of sampling (0)")
    group.add_argument("--generation_batch_size", type=int, help="rows at once (all)")
    group.add_argument("--no_blinded", action="store_true", help="without the blinded rating")
    group.add_argument("--audit_seed", type=int, default=0, help="what is drawn at random (0)")
    group.add_argument(
        "--stitch_dataset",
        nargs="+",
        metavar="D",
        help="text to fit the maps to (what lies behind --max_examples of the dataset)",
    )
    group.add_argument("--stitch_pairs", type=int, default=131_072, help="to fit (131,072)")
    group.add_argument(
        "--stitch_held_out_pairs", type=int, default=8_192, help="to judge by (8,192)"
    )
    group.add_argument("--rubrics", nargs="+", default=[], help="rubrics, by name or file")
    add_hub_options(parser)
    group.add_argument(
        "--rubric_features", type=int, default=3, help="most exclusive latents for them (3)"
    )
    return parser
