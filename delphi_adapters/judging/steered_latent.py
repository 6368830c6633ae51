"""What steering with one latent does, as a judge rates it, in a folder that is of one steering.

```
folder/
    config.json             what was steered, and how
    generations/<model>/    what the models answered
    answers/                the judge's answers, as it gave them
    rubric.yaml, ratings/   see rubric_runs
```
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.interventions.options import ChatOptions
from sparsify_crosscoder.interventions.targets import (
    Target,
    TargetOptions,
    labelled,
    latent_targets,
    with_backend,
)
from sparsify_crosscoder.runs.models import Loading
from sparsify_crosscoder.runs.run import Run

from ..clients import ApiClient
from ..clients.costs import Costs, say_costs
from ..clients.judge import JudgeConfig, make_client
from ..clients.ledger import Ledger
from ..clients.stopping import Stopped
from .rubric_answers import SteeredModel, Writing, rate_steered
from .rubric_runs import RubricResult
from .rubrics import Rubric

if TYPE_CHECKING:
    from delphi.clients import Client

CONFIG = "config.json"
GENERATIONS = "generations"
SAMPLED = 4  # prompts that an estimate looks at


@dataclass(frozen=True)
class LatentSteering:
    """Which latent the models are steered with, and how."""

    run: Run
    latent: int
    target: TargetOptions
    loading: Loading
    chat: ChatOptions = ChatOptions()
    batch_size: int | None = None
    """Rows at once; None: the strengths of one prompt."""


@dataclass(frozen=True)
class RatedLatent:
    """What steering came to."""

    config: dict[str, Any]
    """JSON values: what was steered, and how; empty where only the costs were asked for."""

    judge: str | None
    estimate: Costs
    rated: RubricResult | None = None
    """None if the judge was stopped or not asked."""

    ledger: Ledger | None = None
    """None if the judge costs nothing or was not asked."""

    stopped: str | None = None
    """Why there is no rating, if there is none."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what is not there."""
        found: dict[str, Any] = {"estimate": self.estimate.to_dict(), "stopped": self.stopped}
        if self.config:
            found = {**self.config, "judge": self.judge, **found}
        if self.ledger is not None:
            found["ledger"] = self.ledger.summary()
        return found if self.rated is None else {**found, **self.rated.to_dict()}


def rate_latent(
    judge: JudgeConfig,
    rubric: Rubric,
    asked: LatentSteering,
    folder: Path,
    *,
    dry_run: bool = False,
) -> RatedLatent:
    """Say what it costs to rate what the steered models answer, and unless `dry_run` do it.

    What is in the folder already is not answered and not asked again. Raises ValueError, before a
    model answers, for options that do not fit, and for a folder of another steering.
    """
    client = make_client(judge, folder, dry_run=dry_run)
    both = asked.target.stitching is not None or asked.target.map == "identity"
    estimate = _estimate(client, rubric, 2 if both else 1)
    if dry_run:
        return RatedLatent({}, judge.judge, estimate)
    assert client is not None
    targets, config = _targets(asked, rubric, folder)
    models = {
        label: SteeredModel(
            partial(_load, asked, target),
            target.steering,
            folder / GENERATIONS / re.sub(r"[^\w.-]+", "_", label),
            f"{label} answers",
        )
        for label, target in targets.items()
    }
    writing = Writing(asked.chat.wanted, asked.batch_size)
    rated, stopped = None, None
    try:
        rated = rate_steered(client, rubric, models, folder, writing, judge.max_concurrent)
        stopped = _nothing_rated(rated)
    except Stopped as reason:
        stopped = str(reason)
    ledger = client.ledger if isinstance(client, ApiClient) else None
    return RatedLatent(config, judge.judge, estimate, rated, ledger, stopped)


def _load(asked: LatentSteering, target: Target) -> tuple[Any, Any]:
    model, tokenizer = asked.loading.load(target.name, target.revision, target.checkpoint)
    return with_backend(model, tokenizer, asked.target.backend), tokenizer


def _nothing_rated(rated: RubricResult) -> str | None:
    """Why no answer has a rating, if none has: that is no result."""
    ratings = [one for rows in rated.ratings.values() for row in rows for one in row]
    if any(one.scores for one in ratings):
        return None
    return f"none of {len(ratings):,} answers could be rated; the first: {ratings[0].error}"


def _targets(
    asked: LatentSteering, rubric: Rubric, folder: Path
) -> tuple[dict[str, Target], dict[str, Any]]:
    """The models to steer by their labels, and what the folder's config.json says of them.

    Raises ValueError, before anything is written, where the folder is of another steering.
    """
    path, wanted = folder / CONFIG, asked.target
    kept = _kept_config(path)
    if kept is not None and kept.get("latent") == asked.latent and wanted.s_max is None:
        wanted = replace(wanted, s_max=kept.get("s_max"))  # it need not be looked for again
    found = latent_targets(asked.run, [asked.latent], wanted, asked.loading.device)
    if found.note is not None:
        print(found.note)
    targets = labelled(found.targets)
    config = {
        "run": str(asked.run.path),
        "latent": asked.latent,
        "s_max": next(iter(targets.values())).steering[0].scale,
        "mode": wanted.mode,
        "tokens": wanted.tokens,
        "chat": asked.chat.chat,
        "model_dtype": asked.loading.dtype,
        "sampling": asdict(rubric.sampling),
        "targets": {label: target.to_dict() for label, target in targets.items()},
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
