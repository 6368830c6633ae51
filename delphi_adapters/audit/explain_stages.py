"""What latents fire on, stand for, and whether they matter: cache, explain, score."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsify_crosscoder.commands.filter import Filtered
from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.records import read_json

from ..clients import TransformersClient
from ..clients.judge import NO_JUDGE, fitting
from ..clients.judge_time import say_time
from ..clients.stopping import run_asking
from ..explaining import flagging, interpretability
from ..judging.results import file_name
from .stages import Outcome
from .workspace import Workspace

TIMED = 4  # latents whose prompts an estimate of time looks at
FURTHEST = 20
"""Latents to look at where none is exclusive."""

LEFT_OUT = "no judge: no explanation was written"


def ask(work: Workspace, asking: Awaitable[None]) -> None:
    """Ask the judge to the end; raises Stopped where a budget or somebody stopped it."""
    run_asking(asking, work.client)


def at_once(work: Workspace) -> int:
    """Latents that the judge is asked about at a time."""
    return work.args.max_concurrent or fitting(work.client)


def ledger(work: Workspace) -> dict[str, Any] | None:
    """Requests, tokens and dollars so far; None for a local judge."""
    counted = getattr(work.client, "ledger", None)
    return None if counted is None else counted.summary()


def judge_inputs(work: Workspace) -> dict[str, Any]:
    """Who judges."""
    return {name: getattr(work.args, name) for name in ("judge", "provider", "max_tokens")}


def cache_inputs(work: Workspace) -> dict[str, Any]:
    return {name: getattr(work.args, name) for name in ("source", "cache_ctx_len", "cache_windows")}


def cache(work: Workspace, folder: Path) -> Outcome:
    """Write delphi's cache, and read it back."""
    cache = work.cache
    if not cache.writer.finished:
        cache.run()
        cache.verify()
    statistics = cache.statistics
    files = sorted(file for file in cache.writer.folder.rglob("*") if file.is_file())
    return Outcome(
        {
            "tokens": cache.writer.num_tokens,
            "activations": int(statistics.firings.sum()),
            "dead": int(statistics.dead.sum()),
        },
        files,
        identity=[
            cache.writer._settings,
            statistics.firings.tolist(),
            statistics.max_activation.tolist(),
        ],
    )


def choosing_inputs(work: Workspace) -> dict[str, Any]:
    """What says which latents are looked at."""
    return {name: getattr(work.args, name) for name in ("latents", "explain_limit", "audit_seed")}


def explain_inputs(work: Workspace) -> dict[str, Any]:
    if not work.judged:
        return {"judge": NO_JUDGE, **choosing_inputs(work)}
    return {
        **judge_inputs(work),
        **choosing_inputs(work),
        "judging": asdict(work.judging_config),
    }


def explain(work: Workspace, folder: Path) -> Outcome:
    """Explain and flag, and sort what is flagged into categories; nothing without a judge."""
    latents = chosen_latents(work)
    if not work.judged:
        return Outcome({"latents": latents, "left_out": LEFT_OUT}, identity=latents)
    autointerp = work.autointerp()
    todo = autointerp.unexplained(latents)
    print(f"{len(latents):,} latents to explain, {len(todo):,} of them not explained yet")
    if isinstance(work.client, TransformersClient):
        sample = todo[:: max(len(todo) // TIMED, 1)][:TIMED]
        scale, what = (
            len(todo) / max(len(sample), 1),
            f"explaining and scoring {len(todo):,} latents",
        )
        say_time(work.client, autointerp.prompts(sample), scale, what)
    ask(work, autointerp.explain(work.client, latents, at_once(work)))
    ask(work, autointerp.sort(work.client, latents, at_once(work)))
    names = {file_name(autointerp.name(latent)) for latent in latents}
    found = flagging.load_flags(folder)
    flags = [found[autointerp.name(latent)] for latent in latents]
    failed = sum(flag.status == "failed" and flag.attempts > 0 for flag in flags)
    return Outcome(
        {
            "latents": latents,
            "flags": dict(Counter(flag.status for flag in flags)),
            "harmful": sum(bool(flag.harmful) for flag in flags),
            "ledger": ledger(work),
        },
        [file for kind in ("flags", "categories") for file in _files(folder / kind, names)],
        unfinished=f"{failed:,} latents got no answer" if failed else None,
    )


def score_inputs(work: Workspace) -> dict[str, Any]:
    return judge_inputs(work) if work.judged else {"judge": NO_JUDGE}


def score(work: Workspace, folder: Path) -> Outcome:
    """Test whether explanations tell texts apart (B.4.4); nothing without a judge."""
    if not work.judged:
        return Outcome({"left_out": LEFT_OUT}, identity=None)
    autointerp = work.autointerp()
    explained = explained_latents(work)
    ask(work, autointerp.run(work.client, explained, at_once(work)))
    found = interpretability.load(folder)
    decisions = [found[autointerp.name(latent)] for latent in explained]
    open_ones = sum(not one.final for one in decisions)
    names = {file_name(autointerp.name(latent)) for latent in explained}
    return Outcome(
        {
            "scored": sum(one.score is not None for one in decisions),
            "interpretable": sum(bool(one.interpretable) for one in decisions),
            "unanswered": sum(one.n_unanswered for one in decisions),
            "ledger": ledger(work),
        },
        _files(folder / "interpretability", names),
        unfinished=f"{open_ones:,} latents got no answer" if open_ones else None,
    )


def chosen_latents(work: Workspace) -> list[int]:
    """Latents that the options ask to explain, in order.

    Where none is exclusive, as in many a standard crosscoder, those that lean furthest. Raises
    ValueError where there is none, or one that the crosscoder does not have.
    """
    asked, crosscoder = list(work.args.latents), work.crosscoder
    if asked == ["exclusive"]:
        chosen = torch.cat(called_exclusive(crosscoder)).unique().tolist() or furthest(crosscoder)
    elif asked == ["kept"]:
        chosen = sorted(row["latent"] for row in filtered(work)["latents"] if row["score"] > 0)
    elif asked == ["all"]:
        chosen = list(range(crosscoder.num_latents))
    elif all(one.isdecimal() for one in asked):
        chosen = sorted({int(one) for one in asked})
        if chosen[-1] >= crosscoder.num_latents:
            raise ValueError(
                f"There are latents 0..{crosscoder.num_latents - 1}, not {chosen[-1]}."
            )
    else:
        raise ValueError("--latents takes numbers, 'exclusive', 'kept' or 'all'.")
    if not chosen:
        raise ValueError(
            f"No latent of this crosscoder is {asked[0]}: name some with --latents, or give "
            "--latents all."
        )
    chosen = alive(work, chosen)
    if work.args.explain_limit is not None and len(chosen) > work.args.explain_limit:
        chosen = _limited(work, chosen)
    return chosen


def furthest(crosscoder: Crosscoder) -> list[int]:
    """The latents whose decoders lean furthest towards one model (equation 1), in order."""
    lean = (crosscoder.relative_decoder_norm() - 0.5).abs()
    return lean.topk(min(FURTHEST, len(lean))).indices.sort().values.tolist()


def _limited(work: Workspace, latents: Sequence[int]) -> list[int]:
    """What the filter keeps first, then others at random, as many as the limit allows."""
    scores = {row["latent"]: row["score"] for row in filtered(work)["latents"]}
    order = random.Random(f"explain {work.args.audit_seed}")
    drawn = order.sample(list(latents), len(latents))
    drawn.sort(key=lambda latent: -scores.get(latent, 0.0))
    return sorted(drawn[: work.args.explain_limit])


def alive(work: Workspace, latents: Sequence[int]) -> list[int]:
    """Those of the latents that fire on the cached text."""
    dead = work.cache.statistics.dead
    return [latent for latent in latents if not dead[latent]]


def explained_latents(work: Workspace) -> list[int]:
    """Latents with an explanation and a flag; without a judge, all that are described."""
    latents = work.records["explain"].result["latents"]
    if not work.judged:
        return latents
    autointerp = work.autointerp()
    unexplained = set(autointerp.unexplained(latents))
    return [latent for latent in latents if latent not in unexplained]


def filtered(work: Workspace) -> dict[str, Any]:
    """What the filter said."""
    path = work.folder("filter") / "filter.json"
    return read_json(path, Filtered, "Delete it, and the stage is done again.")


def _files(folder: Path, names: set[str]) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*.json") if file.stem in names)
