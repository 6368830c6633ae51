"""`python -m delphi_adapters rubric RUN --latent N --rubric R`: what steering does, as rated.

```
out/
    config.json             what was steered, and how
    generations/<model>/    what the models answered
    answers/                the judge's answers, as it gave them
    rubric.yaml, ratings/   see rubric_runs
    results.json, table.md, dose_response.png
```
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.command_options import add_options, read_options
from sparsify_crosscoder.files import atomic_path, atomic_write_json
from sparsify_crosscoder.harvest.model_identity import short_names
from sparsify_crosscoder.interventions.options import ChatOptions, ModelOptions
from sparsify_crosscoder.interventions.targets import (
    Target,
    TargetOptions,
    latent_targets,
    with_backend,
)
from sparsify_crosscoder.runs.run import Run

from ..clients import AnthropicClient
from ..clients.costs import Costs, say_costs
from ..clients.judge import make_client
from ..clients.stopping import Stopped
from ..judging.rubric_answers import SteeredModel, Writing, rate_steered
from ..judging.rubric_runs import RubricResult
from ..judging.rubrics import Rubric, shipped
from ..report.dose_response_plot import save_dose_response
from .judge_options import add_judge_options, execute_asking, judge_config

if TYPE_CHECKING:
    from delphi.clients import Client

CONFIG = "config.json"
GENERATIONS = "generations"
SAMPLED = 4  # prompts that an estimate looks at


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute_asking(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Steer, answer, rate, draw; print the table and return everything as JSON values."""
    rubric = Rubric.load(args.rubric).limited(args.prompts_limit, args.strengths)
    if args.max_new_tokens is not None:
        sampling = replace(rubric.sampling, max_new_tokens=args.max_new_tokens)
        rubric = replace(rubric, sampling=sampling)
    folder = args.out or args.run / "rubrics" / f"{rubric.name}-latent{args.latent}"
    client = make_client(judge_config(args), folder, dry_run=args.dry_run)
    both = args.stitching is not None or args.map == "identity"
    estimate = _estimate(client, rubric, 2 if both else 1).to_dict()
    if args.dry_run:
        return {"estimate": estimate, "stopped": None}

    assert client is not None
    targets, config = _targets(args, rubric, folder)
    models = {
        label: SteeredModel(
            partial(_load, args, target),
            target.steering,
            folder / GENERATIONS / _file_name(label),
            f"{label} answers",
        )
        for label, target in targets.items()
    }
    writing = Writing(read_options(ChatOptions, vars(args)).wanted, args.batch_size)
    rated, stopped = None, None
    try:
        rated = rate_steered(client, rubric, models, folder, writing, args.max_concurrent)
    except Stopped as reason:
        stopped = str(reason)
    result: dict[str, Any] = {
        **config,
        "judge": args.judge,
        "estimate": estimate,
        "stopped": stopped,
    }
    if isinstance(client, AnthropicClient):
        result["ledger"] = client.ledger.summary()
        print(f"Ratings cost ${client.ledger.cost:.4f}, those of earlier runs included.")
    if rated is not None:
        result |= rated.to_dict()
        result["stopped"] = _nothing_rated(rated)
        _write(folder, result, rated, f"latent {args.latent}, {rubric.name}")
    return result


def _load(args: argparse.Namespace, target: Target) -> tuple[Any, Any]:
    model, tokenizer = read_options(ModelOptions, vars(args)).loading.load(
        target.name, target.revision, target.checkpoint
    )
    return with_backend(model, tokenizer, args.backend), tokenizer


def _nothing_rated(rated: RubricResult) -> str | None:
    """Why no answer has a rating, if none has: that is no result."""
    ratings = [one for rows in rated.ratings.values() for row in rows for one in row]
    if any(one.scores for one in ratings):
        return None
    return f"none of {len(ratings):,} answers could be rated; the first: {ratings[0].error}"


def _write(folder: Path, result: Mapping[str, Any], rated: RubricResult, title: str) -> None:
    table = rated.table()
    print(f"\n{table}\n")
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    save_dose_response(rated, folder / "dose_response.png", title)
    atomic_write_json(folder / "results.json", result)
    print(f"Everything is in '{folder}'; the curves are dose_response.png.")


def _targets(
    args: argparse.Namespace, rubric: Rubric, folder: Path
) -> tuple[dict[str, Target], dict[str, Any]]:
    """The models to steer by their labels, and what the folder's config.json says of them.

    Raises ValueError, before anything is written, where the folder is of another steering.
    """
    path = folder / CONFIG
    kept = _kept_config(path)
    if kept is not None and kept.get("latent") == args.latent and args.s_max is None:
        args.s_max = kept.get("s_max")  # so that it need not be looked for again
    models = read_options(ModelOptions, vars(args))
    run = Run.open(args.run, **models.hub.access)
    asked = read_options(TargetOptions, vars(args))
    found = latent_targets(run, [args.latent], asked, models.device)
    if found.note is not None:
        print(found.note)
    targets = _labelled(found.targets)
    config = {
        "run": str(args.run),
        "latent": args.latent,
        "s_max": next(iter(targets.values())).steering[0].scale,
        "mode": args.mode,
        "tokens": args.tokens,
        "chat": args.chat,
        "model_dtype": args.model_dtype,
        "sampling": asdict(rubric.sampling),
        "targets": {label: _described(target) for label, target in targets.items()},
    }
    config = json.loads(json.dumps(config))
    if kept is not None:
        _same_steering(path, kept, config)
        # A partner that was steered before stays part of the folder.
        config["targets"] = {**kept["targets"], **config["targets"]}
    if config != kept:
        atomic_write_json(path, config)
    return targets, config


def _kept_config(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        kept = None
    if not isinstance(kept, dict) or not isinstance(kept.get("targets"), dict):
        raise ValueError(f"{path} is no config of this command: give another --out.")
    return kept


def _same_steering(path: Path, kept: dict[str, Any], config: dict[str, Any]) -> None:
    differing = [
        key for key in config if key not in ("run", "targets") and kept.get(key) != config[key]
    ]
    differing += [
        label
        for label, described in config["targets"].items()
        if kept["targets"].get(label, described) != described
    ]
    if differing:
        raise ValueError(
            f"{path.parent} holds answers of another steering (see {', '.join(differing)} in "
            f"{path.name}): give another --out."
        )


def _described(target: Target) -> dict[str, Any]:
    (steering,) = target.steering
    return {
        "model": target.name,
        "revision": target.revision,
        "hookpoint": steering.hookpoint,
        "label": steering.label,
        "norm": float(steering.vector.norm()),
        "vector": hashlib.sha256(steering.vector.cpu().numpy().tobytes()).hexdigest(),
    }


def _labelled(targets: Sequence[Target]) -> dict[str, Target]:
    """Targets by their models' names, with what tells them apart where these are equal."""
    names = short_names([target.name for target in targets])
    if len(set(names)) < len(names):
        names = [
            f"{name} {target.steering[0].hookpoint} ({number})"
            for number, (name, target) in enumerate(zip(names, targets, strict=True), 1)
        ]
    return dict(zip(names, targets, strict=True))


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "_", label)


def _estimate(client: Client | None, rubric: Rubric, models: int) -> Costs:
    """What rating all answers costs if each is as long as it may be."""
    longest = "word" * rubric.sampling.max_new_tokens  # by four characters a token
    total = len(rubric.prompts) * len(rubric.strengths) * models
    sample = [rubric.messages(prompt, longest) for prompt in rubric.prompts[:SAMPLED]]
    print(
        f"{len(rubric.prompts)} prompts x {len(rubric.strengths)} strengths x {models} "
        f"model{'s' if models > 1 else ''}, answers of at most "
        f"{rubric.sampling.max_new_tokens:,} tokens; if all are that long,"
    )
    return say_costs(client, sample, total / len(sample))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m delphi_adapters rubric",
        description="Steer a latent's model, and with --stitching the other one, at several "
        "strengths, have a judge rate every answer by a rubric, and draw the dose-response curves "
        "with 95% intervals (B.5.2 to B.5.7). A run that was stopped goes on.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--latent", type=int, required=True, help="the latent to steer with")
    parser.add_argument(
        "--rubric", required=True, help=f"a YAML file, or one of {', '.join(shipped())}"
    )
    add_judge_options(parser)
    parser.add_argument("--out", type=Path, help="folder (RUN/rubrics/RUBRIC-latentN)")
    parser.add_argument("--prompts_limit", type=int, help="only the rubric's first prompts")
    parser.add_argument(
        "--strengths", type=float, nargs="+", help="other strengths than the rubric's"
    )
    parser.add_argument("--max_new_tokens", type=int, help="length of an answer (the rubric's)")
    parser.add_argument("--batch_size", type=int, help="rows at once (the strengths of one prompt)")
    add_options(parser, ChatOptions)
    add_options(parser, TargetOptions)
    add_options(parser, ModelOptions)
    return parser
